"""A picture of what a terminal showed, for the README.

    COLUMNS=80 script -qc "scdgn search ..." shown.txt
    python -m benchmarks.recording shown.txt -o docs/pictures/verdict.svg --from "Chosen"

The lines from the last one that begins with the words of `--from`, with their colours, as an SVG that needs no other
file.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shown", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--from", dest="words", default="")
    parser.add_argument("--command", default="scdgn search", help="the line above")
    options = parser.parse_args()
    lines = [Text.from_ansi(line) for line in options.shown.read_text(encoding="utf-8").splitlines()]
    begins = [place for place, line in enumerate(lines) if line.plain.startswith(options.words)]
    ends = [place for place, line in enumerate(lines) if line.plain.startswith("Script done")] or [len(lines)]
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.assemble(("$ ", "dim"), (options.command, "bold")))
    for line in lines[begins[-1] : ends[-1]]:
        console.print(line)
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="scdgn"), flags=re.DOTALL)  # of the web
    options.output.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
