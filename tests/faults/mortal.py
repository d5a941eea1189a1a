"""The command line, in a process that comes to grief where it is told to: python -m tests.faults.mortal FAULT WORDS...

FAULT is a JSON object: `place`, one of `PLACES` or "any"; `event`, the number of the write there, from 1 on; `how`:
"kill" (SIGKILL, before that write), "torn" (amid it, in the study's journal), "full" or "read-only" (that write and all
later ones there fail as on such a disk). With `event` 0 nothing happens, and the number of writes at each place is
written to `count`, a path.

A write is what the interpreter announces as one (PEP 578): a file opened to be written, made, renamed or removed; and
the commit of a database. So the points are those between which the disk changes, however fast the process is there.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

PLACES = {
    ("journal.py", "_write"): "storage",
    ("study.py", "_write_predictions"): "predictions",
    ("checkpoints.py", "save"): "checkpoint",
    ("left_out.py", "write"): "left out",
    ("finalists.py", "write_table"): "table",
    ("bundle.py", "save"): "bundle",
    ("folder.py", "write_summary"): "summary",
    ("export.py", "register"): "registration",
    ("runs.py", "write"): "tracking",
}
"""By the function that writes, or is asked to."""

COMMIT = "scdgn.commit"
GROWTH = {"open", "os.mkdir", "os.link", "os.symlink"}
CHANGES = {*GROWTH, "os.rename", "os.remove", "os.rmdir", "os.truncate"}
FAILURES = {"full": (errno.ENOSPC, GROWTH), "read-only": (errno.EROFS, CHANGES)}
"""What the system says, and of what; a database says it in its own way."""


class Fate:
    """Counts the writes, and deals the fault."""

    def __init__(self, place: str, event: int, how: str, count: str | None) -> None:
        self._place, self._event, self._how = place, event, how
        self._counts: Counter[str] = Counter()
        self._file = count

    def __call__(self, name: str, words: tuple[Any, ...]) -> None:
        """An audit hook."""
        if name not in {*CHANGES, COMMIT} or (name == "open" and not _writes(words)):
            return
        place, frame = _where(sys._getframe())
        self._counts[place] += 1
        self._counts["any"] += 1
        if not self._event or self._place not in (place, "any") or self._counts[self._place] < self._event:
            return
        if self._how in FAILURES:
            code, of = FAILURES[self._how]
            if name not in of:
                return
            raise OSError(code, os.strerror(code))
        if self._how == "torn":
            if name != "open" or frame is None:  # of the journal's writes this is its lock
                return
            self._event = 0
            _tear(frame)
        os.kill(os.getpid(), signal.SIGKILL)

    def tell(self) -> None:
        """Write how many there were."""
        if self._file is not None:
            Path(self._file).write_text(json.dumps(self._counts))


def _writes(words: tuple[Any, ...]) -> bool:
    """Whether a file is opened to be written; devices are none."""
    path, _, flags = words
    if not flags & (os.O_WRONLY | os.O_RDWR) or not isinstance(path, str | bytes):
        return False
    return not os.fsdecode(path).startswith("/dev/")


def _where(frame: FrameType | None) -> tuple[str, FrameType | None]:
    """The place that the code which runs is part of, and the frame of its function."""
    while frame is not None:
        code = frame.f_code
        if place := PLACES.get((Path(code.co_filename).name, code.co_name)):
            return place, frame
        frame = frame.f_back
    return "other", None


def _tear(frame: FrameType) -> None:
    """Half of what the journal was about to write."""
    journal = frame.f_locals["self"]
    content = b"".join(journal._held + frame.f_locals["lines"])
    with journal._path.open("ab") as file:
        file.write(content[: len(content) // 2])


def main(fault: str) -> None:
    """Run the command line under a fault."""
    asked = json.loads(fault)
    fate = Fate(asked.get("place", "any"), asked.get("event", 0), asked.get("how", "kill"), asked.get("count"))
    from sqlalchemy import Engine, event

    from scdgn import cli
    from scdgn.commands.terminal import STOPS
    from scdgn.search import studies

    tracked = studies.tracked
    # In this process on a GPU too, so that the fault is dealt to what writes MLflow.
    studies.tracked = lambda watch, track, apart: tracked(watch, track, apart=False)
    command = cli._command

    def listening() -> int:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # which came before would have met no handler
        return command()

    cli._command = listening
    event.listen(Engine, "commit", lambda _: sys.audit(COMMIT))
    sys.addaudithook(fate)
    try:
        cli.main()
    finally:
        fate.tell()


if __name__ == "__main__":
    main(sys.argv.pop(1))
