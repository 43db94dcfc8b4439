"""A git remote in a folder: what Argo CD reads by `file://`, and a clone to commit from.

Called by tests and demonstrations. It must not know what the files mean.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

BRANCH = "main"
_ENVIRONMENT = {
    # Nothing of the person's own git configuration: hooks, signing, another default branch.
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "platform",
    "GIT_AUTHOR_EMAIL": "platform@example.com",
    "GIT_COMMITTER_NAME": "platform",
    "GIT_COMMITTER_EMAIL": "platform@example.com",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
}


class Repository:
    """`url` for an Application's `repoURL`; `commit` writes files and pushes."""

    def __init__(self, folder: Path) -> None:
        self._bare, self._clone = folder / "repository.git", folder / "clone"
        self._bare.parent.mkdir(parents=True, exist_ok=True)
        _git(folder, "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(self._bare))
        _git(folder, "init", "--quiet", f"--initial-branch={BRANCH}", str(self._clone))
        _git(self._clone, "remote", "add", "origin", str(self._bare))

    @property
    def url(self) -> str:
        return f"file://{self._bare}"

    def commit(self, files: Mapping[str, str | None], message: str) -> str:
        """Write `files` (path -> text; None removes) and push. Returns the commit's hash.

        A commit is made even if nothing changes: whoever asks wants a new revision of the repository."""
        for name, text in files.items():
            path = self._clone / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        _git(self._clone, "add", "--all")
        _git(self._clone, "commit", "--quiet", "--allow-empty", f"--message={message}")
        _git(self._clone, "push", "--quiet", "origin", BRANCH)
        return _git(self._clone, "rev-parse", "HEAD").strip()

    def revert(self) -> str:
        """`git revert` of the last commit, pushed. Returns the new commit's hash."""
        _git(self._clone, "revert", "--no-edit", "HEAD")
        _git(self._clone, "push", "--quiet", "origin", BRANCH)
        return _git(self._clone, "rev-parse", "HEAD").strip()


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(
        command, cwd=folder, env=_ENVIRONMENT, check=True, capture_output=True, text=True, timeout=60
    ).stdout
