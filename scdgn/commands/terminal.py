"""How the commands print, and what stops them."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TextIO

STOPS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""Ctrl-C, and what batch systems send before the end: all of them stop a command alike."""


WHOLE = 10_000
"""Width of what is piped."""

BEST, LEFT_OUT = "bold green", "dim"
"""Styles of the best and of what was pruned: they vanish where the output is no terminal, colours with NO_COLOR."""

STAR = "★"
"""Beside what was chosen."""


def print_table(title: str, header: list[str], rows: list[list[str]], quiet: bool, styles: Sequence[str] = ()) -> None:
    """A table on standard output, its title as a line above it; with a style for each row, if any, and not at all if
    `quiet`.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if quiet:
        return
    console = Console()
    if not console.is_terminal:  # whoever reads it has all the width
        console.width = WHOLE
    if title:  # as a line of its own: a table would wrap it to its own width
        console.print(Text(title))
    table = Table(box=box.SIMPLE_HEAD, show_header=any(header))
    names, *others = ([header[place], *(row[place] for row in rows)] for place in range(len(header)))
    numbers = sum(max(map(len, column)) + 2 for column in others)
    # Names are there to be copied; but where one would take the place of the numbers, it is the name that is folded.
    crowded = max(map(len, names)) + 2 + numbers > console.width and numbers < 2 * console.width // 3
    for place, column in enumerate(header):
        table.add_column(column, no_wrap=crowded if place else not crowded, overflow="fold")
    for row, style in zip_longest(rows, styles):
        table.add_row(*(Text(cell) for cell in row), style=style)  # names are data: brackets in them are no markup
    console.print(table)


def print_json(record: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(record))


def say(sentence: str, quiet: bool) -> None:
    """A remark, on standard error."""
    if not quiet:
        print(in_lines(sentence, sys.stderr), file=sys.stderr)


def say_command(words: str, quiet: bool) -> None:
    """A command to copy, in a line of its own, on standard error."""
    if not quiet:
        print(f"  {words}", file=sys.stderr)


def in_lines(sentence: str, stream: TextIO) -> str:
    """A sentence in lines of the terminal, which would cut words and numbers; whole where the stream is none."""
    return textwrap.fill(sentence, width_of(stream), break_long_words=False, break_on_hyphens=False)


def width_of(stream: TextIO) -> int:
    """Columns of a stream."""
    return shutil.get_terminal_size().columns if stream.isatty() else WHOLE


def folded(parts: Sequence[str], width: int) -> list[str]:
    """Parts with commas between them, as many in a line as fit in it, none of them divided."""
    lines: list[str] = []
    for place, part in enumerate(parts):
        written = part if place == len(parts) - 1 else f"{part},"
        if lines and len(lines[-1]) + 1 + len(written) <= width:
            lines[-1] += f" {written}"
        else:
            lines.append(written)
    return lines
