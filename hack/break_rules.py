"""Breaks each rule of the ramp once, in a copy, and shows which test notices: `python -m hack.break_rules`.

A rule whose break no test notices is a rule without a test: exit status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RULES = "tests/unit/rollout/test_rules.py"


@dataclass(frozen=True)
class Break:
    rule: str
    file: str  # below operator/funicular
    old: str
    new: str
    tests: str = RULES


BREAKS = (
    Break(
        "1 one pure function, every cell decided",
        "rollout/transitions.py",
        "for signal in Signal}\n    return",
        "for signal in list(Signal)[:-1]}\n    return",
    ),
    Break(
        "1 the core is pure",
        "rollout/decide.py",
        "from dataclasses import replace",
        "import time\nfrom dataclasses import replace",
    ),
    Break(
        "2 no promotion without a Pass",
        "rollout/classify.py",
        "elif verdict.outcome != Outcome.PASS:",
        "elif verdict.outcome == Outcome.FAIL:",
    ),
    Break("2 no promotion without samples", "rollout/classify.py", "if step.samples < step.min_samples:", "if False:"),
    Break("2 no promotion on an old look", "rollout/classify.py", "STALE_LOOKS * delta", "1_000_000 * delta"),
    Break(
        "2 no promotion on the baseline's evidence",
        "rollout/classify.py",
        "look.exercised < LEAST_EXERCISED",
        "look.exercised < 0",
    ),
    Break(
        "2 a person's promote is bound to the revision",
        "rollout/classify.py",
        "if request is None or not bound(seen):",
        "if request is None:",
    ),
    Break(
        "3 an outage is not a regression",
        "rollout/judgement.py",
        'Outcome.INCONCLUSIVE if reason in ("NoData", "Stale") else Outcome.ERROR',
        "Outcome.FAIL",
    ),
    Break(
        "4 verdicts are statistics",
        "slo/verdicts.py",
        "looks = _look_for_failure(case, budget, looks)",
        "looks = looks",
    ),
    Break(
        "4 a fail is not forgotten",
        "rollout/judgement.py",
        "return Looks(**before.memory.model_dump()) if before else Looks()",
        "return Looks()",
    ),
    Break("4 fast burn acts at once", "rollout/classify.py", "if ramps and (alarm_applies(seen) or", "if ramps and ("),
    Break(
        "5 the clock starts with the share in effect",
        "rollout/classify.py",
        "return Signal.ACKED if acked else Signal.NOTHING\n        case State.REVERTING",
        "return Signal.ACKED\n        case State.REVERTING",
    ),
    Break(
        "5 the window never reaches back", "rollout/judgement.py", "found.started_at == status.step.started_at", "True"
    ),
    Break(
        "6 observed share matches desired",
        "rollout/judgement.py",
        "verdicts.append(_judge_ratio(",
        "(lambda *_: None)(_judge_ratio(",
    ),
    Break("7 abort first", "rollout/classify.py", "    if asked is Signal.ABORT:\n        return asked\n", ""),
    Break(
        "7 revert before pause and promote",
        "rollout/transitions.py",
        '        regressed=_REVERTS["regressed"],\n        resume',
        "        resume",
    ),
    Break("8 history before status", "rollout/decide.py", "    found += _records(seen, before, status)\n", ""),
    Break(
        "9 a rejected revision stays rejected",
        "rollout/classify.py",
        "if any(r.revision == revision for r in status.rejected):",
        "if False:",
    ),
    Break(
        "10 traffic goes to stable",
        "rollout/moves.py",
        '"traffic": traffic_for(seen, status.traffic, stable_route(seen), None, 0),\n            "reverted_at"',
        '"traffic": traffic_for(seen, status.traffic, baseline_route(_spec(seen)), None, 0),\n            "reverted_at"',
    ),
    Break(
        "10 the spec is written back",
        "rollout/decide.py",
        "if status.spec_to_revert is not None and any(",
        "if False and any(",
    ),
    Break("10 a spec from git is held", "rollout/moves.py", "mode is OnRegression.AUTO and seen.managed_by", "False"),
    Break(
        "10 drift goes to the baseline",
        "rollout/transitions.py",
        'regressed=Step("Drifted", Move.DRIFT)',
        'regressed=Step("Drifted", Move.STAY)',
    ),
    Break(
        "11 deletion waits for the pods",
        "rollout/classify.py",
        "is_at_baseline(seen.status) and (acked or",
        "is_at_baseline(seen.status) and (True or",
    ),
    Break(
        "11 deletion goes to the baseline",
        "rollout/transitions.py",
        'nothing=Step("Deleting", Move.TO_BASELINE)',
        'nothing=Step("Deleting", Move.STAY)',
    ),
)


def broken(item: Break, copy: Path) -> tuple[bool, str]:
    """Whether a test failed, and the first that did."""
    path = copy / "operator/funicular" / item.file
    text = path.read_text()
    if text.count(item.old) != 1:
        return False, f"the text to break is there {text.count(item.old)} times: {item.old!r}"
    path.write_text(text.replace(item.old, item.new))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", item.tests],
            cwd=copy,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{copy / 'operator'}:{copy}", "PYTHONDONTWRITEBYTECODE": "1"},
        )
    finally:
        path.write_text(text)
    failed = [
        line.removeprefix("FAILED ").split(" - ")[0]
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    ]
    return done.returncode != 0, failed[0].split("::", 1)[-1] if failed else "none"


def main() -> int:
    table, missed = Table("rule", "broken in", "noticed by"), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("operator", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for item in BREAKS:
            noticed, by = broken(item, copy)
            missed += not noticed
            table.add_row(item.rule, item.file, by if noticed else f"[red]NOBODY ({by})")
    Console(width=150).print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
