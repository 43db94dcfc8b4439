"""Writes the dashboards' JSON into the chart: `python -m hack.dashboards [--check]`; --check fails when it differs."""

from __future__ import annotations

import sys

from hack.dashboards import FOLDER, as_json, boards


def main() -> int:
    wanted = {f"{name}.json": as_json(board) for name, board in boards().items()}
    if "--check" in sys.argv:
        there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
        differing = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        if differing:
            names = ", ".join(differing)
            print(f"charts/funicular/dashboards: {names} differ; run python -m hack.dashboards", file=sys.stderr)
        return 1 if differing else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for stale in {path.name for path in FOLDER.glob("*.json")} - wanted.keys():
        (FOLDER / stale).unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
