"""Who owns trials while they run: the study with somebody listening, or those that are scored again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scdgn.search.choices import Metric
from scdgn.search.folder import Lease, StudyFolder
from scdgn.search.left_out import write
from scdgn.search.records import RUNGS, Confirmation, Outcome, Proposal
from scdgn.search.shown.watching import Watcher
from scdgn.search.study.study import Study


class Watched:
    """The study, with somebody listening. Nothing is written once another process has taken it over (`LeaseError`).

    What is `noted`, by whoever owned trials before this, the user is not told again.
    """

    def __init__(
        self, study: Study, folder: StudyFolder, lease: Lease, watch: Watcher, noted: set[str] | None = None
    ) -> None:
        self._study = study
        self._folder = folder
        self._lease = lease
        self._watch = watch
        self._noted = set() if noted is None else noted

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """The study's next trials."""
        self._lease.check()
        return self._study.next_pack(size)

    def report(self, number: int, step: int, value: float) -> bool:
        """Let the study take a score, and tell of it."""
        self._lease.check()
        self._watch.reported(number, step, value)
        return self._study.report(number, step, value)

    def finished(self, outcome: Outcome) -> None:
        """Let the study take what came of a trial, and tell of it."""
        self._lease.check()
        self._study.finished(outcome)
        self._watch.ended(self._study.record(outcome.record.number))

    def note(self, text: str) -> None:
        """Tell the user, once: every pack that meets the same trouble tells it, again and again."""
        if text not in self._noted:
            self._noted.add(text)
            self._watch.note(text)

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """Keep who works on it, for `scdgn status`."""
        if not self._lease.lost:
            self._folder.write_fleet(fleet)
        self._watch.workers(fleet)


class Again(Watched):
    """Trials that are scored again, with other seeds: nothing is pruned, and only the scores, by a metric, are kept."""

    def __init__(
        self,
        proposals: Sequence[Proposal],
        metric: Metric,
        study: Study,
        folder: StudyFolder,
        lease: Lease,
        watch: Watcher,
        noted: set[str] | None = None,
    ) -> None:
        super().__init__(study, folder, lease, watch, noted)
        self._left = list(proposals)
        self._steps = {proposal.number: 0 for proposal in proposals}
        self._metric: Metric = metric
        self._last: dict[int, float] = {}

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """The next ones; and False when there is none left."""
        pack, self._left = self._left[:size], self._left[size:]
        return pack, len(pack) > 0

    def report(self, number: int, step: int, value: float) -> bool:
        """Keep the last score."""
        self._last[number] = value
        self._came_to(number, step)
        return False

    def finished(self, outcome: Outcome) -> None:
        """Keep the scores in the study, and what they were scored by beside it."""
        self._lease.check()
        record = outcome.record
        folds = {name: float(getattr(fold, self._metric)) for name, fold in record.folds.items()}
        kept = Confirmation(self._last[record.number], folds) if record.state == "complete" else None
        if kept is not None:
            write(self._folder.left_out(record.number), outcome.left_out)
        self._study.confirm(record.number, kept)
        self._came_to(record.number, RUNGS)

    def _came_to(self, number: int, step: int) -> None:
        self._steps[number] = step
        self._watch.advanced(sum(self._steps.values()) / (RUNGS * len(self._steps)))
