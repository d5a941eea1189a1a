"""`scdgn status --watch`: studies looked at again and again while somebody works on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from scdgn.commands.terminal import BEST, LEFT_OUT, folded
from scdgn.search.records import RUNGS
from scdgn.search.shown.overview import METRIC, status_line

EVERY = 2.0
"""Seconds between two looks."""

GRACE = 10.0
"""Seconds without anybody at work after which it ends: between two methods of a search nobody is, for a moment."""

Studies = Sequence[Mapping[str, Any]]


def follow(
    look: Callable[[], Studies],
    console: Console,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Show studies until they are done or nobody works on them, or until Ctrl-C.

    `look` has their states (`overview.status`). On a terminal all is drawn again and again; elsewhere a line is added
    for each study that has changed.
    """
    found = look()
    idle = 0.0 if _at_work(found) else GRACE  # whom nobody works on at first is shown once
    told: set[str] = set()

    def draw() -> Group:
        return Group(*(line for one in found for line in in_lines(one, console.width)))

    live = Live(console=console, auto_refresh=False, get_renderable=draw) if console.is_terminal else None
    try:
        if live is not None:
            live.start(refresh=True)
        while True:
            if live is not None:
                live.refresh()
            else:
                _tell(found, told)
            if idle >= GRACE:
                return
            sleep(EVERY)
            found = look()
            idle = 0.0 if _at_work(found) else idle + EVERY
    except KeyboardInterrupt:  # the way to end it
        return
    finally:
        if live is not None:
            live.stop()


def in_lines(one: Mapping[str, Any], width: int) -> Iterator[Text]:
    """A study: counts, what is done now, and the best."""
    yield Text(status_line(one), style="bold")
    metric = METRIC[one["metric"]]
    running = [trial for trial in one["trials"] if trial["state"] == "running"]
    if one["owner"]:
        for trial in running:
            score = "" if trial["value"] is None else f", {metric} {trial['value']:.3f}"
            yield Text(f"  trial {trial['number']}: {trial['step'] / RUNGS:.0%} of its epochs{score}", LEFT_OUT)
        if not running and sum(one["states"].values()) >= one["budget"]:
            yield Text("  the trials are done: the best are scored again, the winner is trained and exported")
    for words in one["words"]:
        for part in folded(words.split(", "), width - 2):
            yield Text(f"  {part}", BEST if words.startswith("winner") or one["summary"] is None else "")


def _at_work(found: Studies) -> bool:
    return any(one["owner"] is not None for one in found)


def _tell(found: Studies, told: set[str]) -> None:
    for one in found:
        if (line := status_line(one)) not in told:
            told.add(line)
            print(line, flush=True)
