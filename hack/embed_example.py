"""Puts hack/examples/support-chat.yaml into the README: `python -m hack.embed_example [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- example: begin -->\n", "<!-- example: end -->\n"


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    example = (ROOT / "hack/examples/support-chat.yaml").read_text()
    wanted = f"{head}{BEGIN}```yaml\n{example}```\n{END}{tail}"
    if "--check" in sys.argv:
        if wanted != text:
            print("README.md's example differs from hack/examples; run python -m hack.embed_example", file=sys.stderr)
        return int(wanted != text)
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
