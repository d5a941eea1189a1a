"""The commands about what came out. Like the others they import what is heavy when they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdgn.commands.options import DATA, EVALUATION, HARDWARE, SEARCH, DatasetPath, Device, Quiet
from scdgn.commands.terminal import print_table, say
from scdgn.search.commands import (
    STUDIES,
    Changes,
    Config,
    Engine,
    InStudies,
    Names,
    Seed,
    Studies,
    Track,
    Trials,
    watching,
)

if TYPE_CHECKING:
    import pandas as pd

MOVED = "File of the cells, where it is not any more where the search found it."

_PEERS = {
    "data_set": "data set", "method": "method", "settings": "settings", "macro_f1": "macro-F1", "accuracy": "accuracy",
}  # fmt: skip
_SCORES = {
    "data_set": "data set", "mutual_information": "bits", "method": "method", "metric": "score", "mean": "mean",
    "std": "sd", "ensemble": "ensemble", "published": "published",
}  # fmt: skip


def report(
    names: Names,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write (the studies' own).", metavar="DIR")
    ] = None,
    studies: Studies = STUDIES,
    data: Annotated[Path | None, typer.Option(help=MOVED)] = None,
    cells: Annotated[bool, typer.Option(help="Read the cells again, for what is shown of them.")] = True,
    tracked: Annotated[
        bool, typer.Option("--from-mlflow", help="Read the studies from MLflow: scores and searches, no cells.")
    ] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html, which needs nothing beside it, and all of its tables and figures."""
    import webbrowser

    from scdgn.analysis.page.page import write
    from scdgn.analysis.report import Asked, compose, track
    from scdgn.analysis.studies.results import read_all
    from scdgn.analysis.studies.tracked import read_tracked
    from scdgn.errors import DataError, SettingsError
    from scdgn.search.tracking.store import configure
    from scdgn.threads import share_cores

    share_cores()
    if tracked:
        found, unfinished = read_tracked(configure(studies), names), list[str]()
    else:
        found, unfinished = read_all(studies, names)
    if data is not None and not data.exists():  # a page without cells is for those whose file is lost
        raise DataError(f"--data {data} does not exist: give the file of the cells")
    folder = output or (studies.joinpath(*names[0].split("/")) if len(names) == 1 else None)
    if folder is None:
        raise SettingsError("several names have no folder in common: say where to write the report with -o DIR")
    asked = Asked(data, cells and not tracked, lambda text: say(text, quiet))
    page = write(compose(found, asked, unfinished), folder, lambda text: say(text, quiet))
    say(f"report in {page} ({page.stat().st_size / 1e6:.1f} MB), tables and figures beside it", quiet)
    track(page, found, lambda text: say(text, quiet))
    if show and not webbrowser.open(page.resolve().as_uri()):
        say("there is no browser here to open it", quiet)


def peers(
    names: Names,
    peer: Annotated[
        list[str] | None, SEARCH(help="A method to compare with (repeatable); all by default.", metavar="PEER")
    ] = None,
    trials: Annotated[
        int | None, SEARCH(help="Trials of each that is tuned; as many as the study by default, 0: defaults.")
    ] = None,
    python: Annotated[
        list[str] | None,
        HARDWARE(help="Python that has the method's package (repeatable).", metavar="PEER=PYTHON"),
    ] = None,
    timeout: Annotated[float, SEARCH(help="Seconds for each method and study.")] = 3600.0,
    device: Device = "auto",
    studies: Studies = STUDIES,
    data: Annotated[Path | None, DATA(help=MOVED)] = None,
    quiet: Quiet = False,
) -> None:
    """Compare with other methods on the same cells: tuned on the same folds, scored once on the same test batch.

    One study of each data set carries them, the first by name; `scdgn report` shows what came out.
    """
    from scdgn.analysis.peers import PEERS, run, table
    from scdgn.analysis.studies.cells import source_of
    from scdgn.analysis.studies.results import grouped, read_all
    from scdgn.errors import SettingsError
    from scdgn.threads import share_cores

    share_cores()
    pythons = dict(entry.partition("=")[::2] for entry in python or [])
    if "" in pythons.values():
        raise SettingsError(f"--python is {', '.join(python or [])!r}: write PEER=PYTHON")
    found, _ = read_all(studies, names)
    groups = [group for group in grouped(found) if group.best.is_search]
    for group in groups:
        carrier = next(one for one in group.results if one.is_search)
        chosen = peer or list(PEERS)
        run(carrier, source_of(carrier, data), chosen, trials, pythons, timeout, device, lambda text: say(text, quiet))
    compared = table(groups)
    _print(compared, _PEERS)


def reproduce(
    data: Annotated[Path | None, typer.Argument(help="An .h5ad file, with --splits.", metavar="DATA.h5ad")] = None,
    splits: Annotated[Path | None, DATA(help="Training sets of DATA.h5ad, as JSON.", metavar="FILE.json")] = None,
    dataset: Annotated[
        str | None, DATA(help="A data set of the paper (`scdgn datasets`): pancreas stands for all six.")
    ] = None,
    path: DatasetPath = None,
    name: Annotated[str | None, typer.Option(help="Of the studies: NAME/SET/METHOD.")] = None,
    trials: Trials = None,
    changes: Changes = None,
    config: Config = None,
    seed: Seed = None,
    engine: Engine = None,
    best_of_ten: Annotated[
        bool, EVALUATION("--best-of-ten", help="Add the write-up's protocol, ten random draws each.")
    ] = False,
    studies: InStudies = None,
    track: Track = True,
    quiet: Quiet = False,
) -> int:
    """Search NN, DANN and scDGN on every training set of the paper, or of a file of splits. Run again to resume."""
    given = locals()  # by the names of the settings
    from scdgn.analysis.chapters.tables import table2
    from scdgn.analysis.reproduction import paper_sources, reproduce, split_sources
    from scdgn.analysis.studies.results import grouped, read_all
    from scdgn.errors import SettingsError
    from scdgn.search.studies import Interrupted
    from scdgn.search.study.documents import of_the_study, read_study
    from scdgn.threads import share_cores

    share_cores()
    if (data is None) != (splits is None) or (data is None) == (dataset is None):
        raise SettingsError("what to reproduce is not clear: give DATA.h5ad with --splits FILE.json, or --dataset NAME")
    said = of_the_study({key: given[key] for key in ("trials", "seed", "engine", "studies", "changes")})
    name = name or (dataset if data is None else data.stem)
    settings = read_study(config, {**said, "name": name, "method": "all"})
    sources = split_sources(data, splits) if data is not None and splits is not None else None
    sources = sources or paper_sources(str(dataset), path)
    try:
        with watching(False, quiet) as watch:
            names = reproduce(settings, sources, watch, track, best_of_ten)
    except Interrupted:
        say("stopped; the same command goes on from here", quiet)
        raise SystemExit(130) from None  # said already
    found, _ = read_all(settings.studies, names)
    scores = table2(grouped(found))
    _print(scores[scores["metric"].isin(["accuracy", "macro_f1"])], _SCORES)
    say(f"`scdgn report {settings.name}` writes tables, figures and a page", quiet)
    return 0


def _print(frame: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Some columns of a table, under other names."""
    from scdgn.analysis.page.page import written

    rows = [[written(value, 3) for value in row] for row in frame[list(columns)].itertuples(index=False, name=None)]
    print_table("", list(columns.values()), rows, quiet=False)


EXAMPLES: dict[Callable[..., Any], str] = {
    report: "report islets",
    peers: "peers islets --peer celltypist --trials 10",
    reproduce: "reproduce pbmc.h5ad --splits splits.json --name pbmc --trials 30",
}
