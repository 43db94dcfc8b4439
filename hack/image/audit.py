"""`make audit`: known vulnerabilities of what the images' Python packages pin, and the code's own security rules.

Called by the command line. It must not be green because nobody could be asked: pip-audit passes over packages that its
database does not know, and calls that "no known vulnerabilities".
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.image.recipes import CHECKOUT, REQUIREMENTS

CLEAN, FOUND, NOT_AUDITED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One audit's result: `code` is CLEAN, FOUND or NOT_AUDITED, `lines` say what or why."""

    title: str
    code: int
    lines: tuple[str, ...]


def audit(say: Callable[[str], None] = print, service: Sequence[str] = ()) -> int:
    """All audits, each with a line or more; the worst code. `service`: more options of pip-audit."""
    findings = (packages(REQUIREMENTS, service), code())
    for finding in findings:
        state = {CLEAN: "nothing found", FOUND: "FOUND", NOT_AUDITED: "NOT AUDITED"}[finding.code]
        say(f"{finding.title}: {state}")
        for line in finding.lines:
            say(f"  {line}")
    return max(finding.code for finding in findings)


def packages(requirements: Path, service: Sequence[str] = ()) -> Finding:
    """pip-audit over a lock. `--strict`: a package that cannot be looked up is an error."""
    done = _run(["pip_audit", "--strict", "--require-hashes", "--disable-pip", "--progress-spinner", "off",
                 "--format", "json", "--requirement", str(requirements), *service])  # fmt: skip
    title = f"packages of {requirements.name}"
    try:
        report = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"]
        return Finding(title, NOT_AUDITED, (said[-1], "the database of vulnerabilities could not be asked"))
    bad = tuple(
        f"{it['name']} {it['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for it in report
        for found in it.get("vulns", ())
    )
    return Finding(title, FOUND if bad else CLEAN, bad or (f"{len(report)} packages",))


def code() -> Finding:
    """ruff's security rules (those of bandit) over the product, but for those that pyproject.toml passes over."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    passed_over = [rule for rule in project["tool"]["ruff"]["lint"]["ignore"] if rule.startswith("S")]
    # As options: what is selected on the command line wins over the file.
    done = _run(["ruff", "check", "--select", "S", "--ignore", ",".join(passed_over), "--output-format", "concise",
                 str(CHECKOUT / "operator")])  # fmt: skip
    lines = tuple(done.stdout.strip().splitlines())
    if done.returncode not in (CLEAN, FOUND):
        return Finding("code of operator/", NOT_AUDITED, (done.stderr.strip(),))
    return Finding(
        "code of operator/", done.returncode, lines if done.returncode else (f"without {', '.join(passed_over)}",)
    )


def _run(module: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, check=False, cwd=CHECKOUT)
