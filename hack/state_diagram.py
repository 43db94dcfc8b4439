"""Draws the README's state diagram from the transition table: `python -m hack.state_diagram [--check]`.

Mermaid text between two markers of README.md; --check fails when the README says something else than the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from funicular.rollout.transitions import TRANSITIONS, Move, Signal, State

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- state diagram: begin -->\n", "<!-- state diagram: end -->\n"

# Where a move leads, as classify sees the facts afterwards.
TARGETS: dict[Move, tuple[State, ...]] = {
    Move.START_RAMP: (State.SHIFTING,),
    Move.START_CLOCK: (State.WATCHING,),
    Move.NEXT_STEP: (State.SHIFTING, State.STEADY),
    Move.SKIP_STEP: (State.SHIFTING, State.STEADY),
    Move.REVERT: (State.REVERTING,),
    Move.REJECT: (State.REJECTED,),
    Move.DROP_CANDIDATE: (State.PREPARING,),
    Move.PAUSE: (State.PAUSED,),
    Move.RESUME: (State.WATCHING,),
    Move.FORGIVE: (State.PREPARING,),
    Move.DRIFT: (State.REVERTING,),
    Move.SETTLE: (State.STEADY, State.REJECTED),
}


def diagram() -> str:
    """Mermaid: an arrow for each cell that leads elsewhere, labelled by the signals that take it."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, signal), step in TRANSITIONS.items():
        for target in TARGETS.get(step.move, ()):
            if step.move is Move.NEXT_STEP:
                label = "passed" if target is State.SHIFTING else "passed the last step"
            elif step.move is Move.SKIP_STEP:
                label = "promote"
            elif step.move is Move.SETTLE:
                label = "acked" if target is State.STEADY else "acked, spec held"
            else:
                label = signal.value.lower() if signal is not Signal.NOTHING else step.reason.lower()
            arrows.setdefault((state, target), []).append(label)
    lines = ["stateDiagram-v2", f"    [*] --> {State.PREPARING}: a new revision"]
    lines += [f"    {a} --> {b}: {', '.join(dict.fromkeys(labels))}" for (a, b), labels in arrows.items()]
    lines += [
        f"    {State.STEADY} --> {State.PREPARING}: a new revision",
        f"    {State.REJECTED} --> {State.PREPARING}: a new revision",
    ]
    lines += [
        f"    {State.WATCHING} --> {State.SUPERSEDED}: the spec was edited",
        f"    {State.DELETING} --> [*]: acked",
    ]
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def main() -> int:
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = head + BEGIN + diagram() + END + tail
    if "--check" in sys.argv:
        if wanted != text:
            print(
                "README.md's state diagram differs from the transition table; run python -m hack.state_diagram",
                file=sys.stderr,
            )
            return 1
        return 0
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
