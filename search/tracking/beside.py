"""MLflow written by a process of its own: a search shares neither its interpreter nor its waiting with it.

What the search tells it are lines of JSON, `begun`, `ended`, `done` and `closed`; what comes back are `note`, a
sentence for the user, and `closed`, once all of a study is written that can be. It ends with the process that it
belongs to.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from scdgn.commands.terminal import STOPS
from scdgn.search.folder import StudyFolder
from scdgn.search.records import TrialRecord
from scdgn.search.shown.watching import Begun, Watcher
from scdgn.search.summary import AnySummary
from scdgn.search.tracking.tracker import PATIENCE, Tracker, lacking, selected_by

_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from scdgn.search.tracking.beside import main; main()"


class Beside(Watcher):
    """Has the studies of a command tracked, one after the other, by another process, which the first one starts.

    Parameters
    ----------
    say
        As of `Tracker`.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._folder: StudyFolder | None = None  # of the study that is tracked now
        self._process: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._answered = threading.Event()
        self._whole = False

    def begun(self, study: Begun) -> None:
        """Start to track a study."""
        records = [asdict(record) for record in study.records]
        self._open(study.folder)
        self._tell("begun", {"folder": str(study.folder.path), "by": selected_by(study), "records": records})

    def ended(self, record: TrialRecord) -> None:
        """Write the trial."""
        self._tell("ended", asdict(record))

    def done(self, folder: StudyFolder, summary: AnySummary) -> None:
        """Write what came out, which lies in the folder."""
        if self._folder is None:
            self._open(folder)
        self._tell("done", str(folder.path))

    def close(self) -> None:
        """Have the rest of a study written, and wait for it as long as a tracker does."""
        if self._folder is None:
            return
        folder, self._folder = self._folder, None
        self._tell("closed")
        self._answered.wait(2 * PATIENCE + 1)  # it waits once when all is done, and once when it closes
        if not self._whole:
            self._end(0.0)
            self._say(lacking(folder))

    def end(self) -> None:
        """No study follows."""
        self._end(PATIENCE)

    def _open(self, folder: StudyFolder) -> None:
        self._folder, self._whole = folder, False
        self._answered.clear()
        if self._process is None:
            # Ctrl-C is the search's, which then says what is to be done here.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *sys.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip
            self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
            self._listener.start()

    def _tell(self, what: str, content: Any = None) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError):  # it is gone, which `close` notices
            self._process.stdin.write(json.dumps([what, content]) + "\n")
            self._process.stdin.flush()

    def _listen(self, said: IO[str]) -> None:
        with said:
            for line in said:
                what, content = json.loads(line)
                if what == "note":
                    self._say(content)
                else:
                    self._whole = True
                    self._answered.set()
        self._answered.set()  # it is gone

    def _end(self, seconds: float) -> None:
        if self._process is None or self._listener is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        self._process = self._listener = None


def main() -> None:
    """The other process."""
    for number in STOPS:  # a batch system sends them to all processes of a job
        signal.signal(number, signal.SIG_IGN)
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints does so elsewhere
    lock = threading.Lock()

    def answer(what: str, content: str = "") -> None:
        with lock, suppress(OSError):
            answers.write(json.dumps([what, content]) + "\n")
            answers.flush()

    tracker: Tracker | None = None
    for line in sys.stdin:
        what, content = json.loads(line)
        tracker = tracker or Tracker(lambda text: answer("note", text))
        if what == "begun":
            records = [TrialRecord.from_mapping(record) for record in content["records"]]
            tracker.follow(StudyFolder(Path(content["folder"])), content["by"], records)
        elif what == "ended":
            tracker.ended(TrialRecord.from_mapping(content))
        elif what == "done" and (summary := StudyFolder(Path(content)).read_summary()) is not None:
            tracker.done(StudyFolder(Path(content)), summary)
        elif what == "closed":
            tracker.close()
            tracker = None
            answer("closed")
