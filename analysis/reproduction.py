"""The paper's comparison from end to end: every training set, every method, the same budget, and the write-up's way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scdgn.cells.datasets import DATASETS
from scdgn.cells.fields import Fields
from scdgn.cells.sources import Source
from scdgn.cells.splits import read_blocks
from scdgn.core.config import Method
from scdgn.errors import DataError, nearest
from scdgn.search.shown.watching import Watcher
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings

DRAWN: tuple[Method, ...] = ("dann", "scdgn")
"""Methods with a lambda to draw at random, which the write-up's protocol does."""


def reproduce(
    settings: StudySettings,
    sources: Mapping[str, Source],
    watch: Watcher | None = None,
    track: bool = True,
    best_of_ten: bool = False,
) -> list[str]:
    """Search all methods on every training set, one after the other, each with its final seeds and its test.

    The studies are called NAME/SET/nn, NAME/SET/dann and NAME/SET/scdgn. What is done is not done again, and what was
    cut off goes on, so that the same call ends what was begun.

    Parameters
    ----------
    settings
        Name, budget, space, engine and folder of all studies. Its source says whether to adapt; its method is taken for
        all three.
    sources
        The training sets by name (`paper_sources`, `split_sources`).
    watch
        Told of what happens.
    track
        Whether to log to MLflow and register the best model of every set.
    best_of_ten
        Whether to add the write-up's protocol, the best test accuracy of ten trainings with random margin and lambda,
        as NAME/SET/best-of-10/dann and NAME/SET/best-of-10/scdgn. NN has neither: its ten final seeds stand for it.

    Returns
    -------
    The name of every set's studies, NAME/SET, as `scdgn report` takes them.

    Raises
    ------
    ScdgnError
        For anything that the user can mend, faults of the settings before anything is trained.
    Interrupted
        After Ctrl-C, when the running epoch has ended.
    """
    planned = [one for name, source in sources.items() for one in plan(settings, name, source, best_of_ten)]
    for one in planned:
        run(one, watch, track=track)
    return [f"{settings.name}/{name}" for name in sources]


def plan(settings: StudySettings, name: str, source: Source, best_of_ten: bool = False) -> list[StudySettings]:
    """What is run on one training set: see `reproduce`."""
    source = replace(source, adapt=settings.source.adapt)
    name = f"{settings.name}/{name}"
    searches = replace(settings, name=name, source=source, method="all", protocol="search")
    if not best_of_ten:
        return [searches]
    # The draws train on the training cells alone, whatever the searches do.
    alone = replace(source, adapt=False)
    draws = [
        replace(searches, name=f"{name}/best-of-10/{method}", source=alone, method=method, protocol="seed-best-of-10")
        for method in DRAWN
    ]
    return [searches, *draws]


def paper_sources(data_set: str = "pancreas", path: Path | None = None) -> dict[str, Source]:
    """The training sets of a data set of the paper: of pancreas, and of simulated-pancreas, six; any other is one.

    Parameters
    ----------
    path
        Its file or folder; by default it is downloaded.

    Raises
    ------
    DataError
        If there is no such data set in `scdgn.cells.datasets`.
    """
    if data_set not in DATASETS:
        raise DataError(f"data set {data_set!r} does not exist: {nearest(data_set, DATASETS)}")
    sets = [name for name in DATASETS if name.removeprefix(data_set).isdecimal() and name.startswith(data_set)]
    return {name: Source(dataset=name, path=path) for name in sets or [data_set]}


def split_sources(data: Path, splits: Path, fields: Fields | None = None) -> dict[str, Source]:
    """The training sets of an .h5ad file: every split of a JSON file (`scdgn.cells.splits.read_blocks`).

    Parameters
    ----------
    fields
        Where the cells keep what is needed; by default the keys of the split file.

    Raises
    ------
    DataError
        If the file of splits is none, or holds none.
    """
    try:
        names = list(json.loads(splits.read_text(encoding="utf-8"))["splits"])
    except OSError as error:
        raise DataError(f"{splits} cannot be read ({error.strerror}): give a JSON file of splits") from None
    except (ValueError, TypeError, KeyError):
        names = []
    if not names:
        raise DataError(f"{splits} holds no splits: give a JSON file with 'test_domain' and 'splits'")
    for name in names:
        read_blocks(f"{splits}:{name}")
    fields = fields or Fields(None, None)
    return {name: Source(data=data, split=f"{splits}:{name}", fields=fields) for name in names}
