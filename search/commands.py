"""The commands about studies. Like the others they import what is heavy when they run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdgn.commands import options
from scdgn.commands.options import DATA, EVALUATION, EXPERT, HARDWARE, SEARCH, Overwrite, Quiet
from scdgn.commands.terminal import folded, in_lines, print_json, print_table, say, say_command, width_of
from scdgn.core.config import Precision
from scdgn.search.choices import Correct, EngineName, Methods, Metric, Procedure, Selection
from scdgn.search.tracking.store import HOST, PORT

if TYPE_CHECKING:
    from scdgn.search.shown.watching import Watcher
    from scdgn.search.study.settings import StudySettings
    from scdgn.search.summary import AnySummary, Registration


Studies = Annotated[Path, typer.Option(help="Folder of all studies.")]
Names = Annotated[list[str], typer.Argument(help="Names of studies; NAME also stands for all of NAME/...")]
Name = Annotated[str, typer.Argument(help="Name of a study.")]
STUDIES = Path("studies")

# Of the commands that search, whose file may say the same: None where the user does not.
Changes = Annotated[
    list[str] | None,
    SEARCH(
        "--set",
        metavar="KEY=VALUE",
        help="Fix a setting, or choices \\[a, b], or a range {low=, high=, log=} (repeatable).",
    ),
]
Config = Annotated[Path | None, SEARCH(help="TOML file: study, data, space, sampler, pruner.", metavar="FILE.toml")]
Trials = Annotated[int | None, SEARCH(help="Trials of each study in all, those of earlier runs included (50).")]
Seed = Annotated[int | None, SEARCH(help="Seed of everything (0).")]
Engine = Annotated[EngineName | None, HARDWARE(help="Train trials in this process, or wherever Ray reaches (local).")]
InStudies = Annotated[Path | None, typer.Option(help="Folder of all studies (studies).")]
Track = Annotated[bool, typer.Option(help="Log to MLflow and register the models.")]


def search(
    data: options.CellsFiles = None,
    obs: options.Obs = None,
    name: Annotated[str | None, typer.Option(help="Of the study, its folder and the registered model.")] = None,
    labels_key: options.LabelsKey = None,
    batch_key: options.BatchKey = None,
    group_key: options.GroupKey = None,
    test_batch: Annotated[
        list[str] | None,
        DATA(
            metavar="BATCH",
            help="Batch to hold out for the one evaluation at the end (repeatable); `each` holds out all in turn.",
        ),
    ] = None,
    dataset: options.Dataset = None,
    path: options.DatasetPath = None,
    split: Annotated[
        str | None, DATA(metavar="FILE:NAME", help="Search on the blocks of a split, test on its test domain.")
    ] = None,
    query: Annotated[
        str | None,
        DATA(metavar="BATCH|FILE", help="Cells to annotate, without labels, instead of a test batch."),
    ] = None,
    adapt: Annotated[
        bool | None, SEARCH("--adapt", help="Let the search use unlabelled cells too (transductive).")
    ] = None,
    method: Annotated[Methods | None, SEARCH(help="What to search; all: three sibling studies.")] = None,
    trials: Trials = None,
    timeout: Annotated[float | None, SEARCH(help="Seconds after which no further trial starts.")] = None,
    changes: Changes = None,
    config: Config = None,
    metric: Annotated[Metric | None, EVALUATION(help="What the folds are scored by (macro_f1).")] = None,
    selection: Annotated[Selection | None, EVALUATION(help="How the winner is chosen (leave-one-domain-out).")] = None,
    seed: Seed = None,
    fold_seeds: Annotated[int | None, EXPERT(help="Models of different seeds per fold (1).")] = None,
    max_folds: Annotated[int | None, EXPERT(help="More domains are left out in groups (5).")] = None,
    search_cells: Annotated[
        int | None, EXPERT(min=0, help="Cells that a model of a trial trains on at most (10000); 0: all.")
    ] = None,
    sampler: Annotated[str | None, EXPERT(help="Optuna's class (TPESampler).")] = None,
    pruner: Annotated[str | None, EXPERT(help="Optuna's class (MedianPruner; NopPruner prunes nothing).")] = None,
    pack: Annotated[int | None, EXPERT(help="Trials trained as one pack; told by device and sizes.")] = None,
    reference: Annotated[
        bool | None, EXPERT("--reference", help="Make the published training as a whole one of the trials.")
    ] = None,
    portfolio: Annotated[
        bool | None,
        EXPERT("--portfolio/--no-portfolio", help="Begin with settings that did well elsewhere (yes)."),
    ] = None,
    enqueue: Annotated[
        Path | None,
        EXPERT(help="TOML file with tables \\[\\[trial]] of settings to try first.", metavar="FILE.toml"),
    ] = None,
    confirm: Annotated[
        int | None, EVALUATION(help="Best trials that are scored again, with other seeds, to choose among (5).")
    ] = None,
    final_seeds: Annotated[int | None, EVALUATION(help="Seeds with which the winner is trained again (10).")] = None,
    ensemble: Annotated[
        bool | None,
        EVALUATION("--ensemble/--no-ensemble", help="Let other trials than the winner be in the ensemble (yes)."),
    ] = None,
    correct: Annotated[
        Correct | None,
        EVALUATION(help="Whether the model corrects its input for a query; auto: unless left-out domains lose."),
    ] = None,
    single: Annotated[
        bool | None, EVALUATION("--single", help="Export the seed picked by validation, not the ensemble.")
    ] = None,
    refit_all: Annotated[
        bool | None, EVALUATION("--refit-all", help="Export the winner trained on all labelled cells.")
    ] = None,
    promote: Annotated[
        bool | None, EVALUATION("--promote", help="Make the model the champion, whatever the present one scores.")
    ] = None,
    protocol: Annotated[
        Procedure | None, EVALUATION(help="seed-best-of-10: what the paper's write-up did; for comparison alone.")
    ] = None,
    repeats: Annotated[int | None, SEARCH("--search-repeats", help="Repeat the search with other seeds.")] = None,
    storage: Annotated[str | None, EXPERT(help="Optuna storage URL, instead of the study folder.")] = None,
    studies: InStudies = None,
    unlabeled: options.UnlabeledCells = None,
    unlabeled_category: Annotated[
        str | None, DATA(help="Label of cells whose type is not known: they come out annotated.")
    ] = None,
    layer: options.Layer = None,
    gene_key: options.GeneKey = None,
    values: options.Values = None,
    duplicate_genes: options.DuplicateGenes = None,
    missing_labels: options.MissingLabels = None,
    kept_labels: options.KeptLabels = None,
    min_batch_cells: options.MinBatchCells = None,
    device: Annotated[str | None, HARDWARE(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")] = None,
    precision: Annotated[Precision | None, HARDWARE(help="Of matrix products (tf32).")] = None,
    engine: Engine = None,
    address: Annotated[
        str | None, HARDWARE(metavar="auto|HOST:PORT", help="Ray cluster to join; without it one starts here.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, HARDWARE(help="GPUs of each pack, or a fraction of one (1 where there are GPUs).")
    ] = None,
    cpus_per_trial: Annotated[int | None, HARDWARE(help="CPUs of each pack (1).")] = None,
    concurrency: Annotated[int | None, HARDWARE(help="Packs at once (as many as fit).")] = None,
    max_failures: Annotated[
        int | None, HARDWARE(help="How often a pack starts again whose worker was lost; -1: always (3).")
    ] = None,
    checkpoints: Annotated[
        str | None, HARDWARE(metavar="PATH|URL", help="Where checkpoints of packs go (the study's folder).")
    ] = None,
    checkpoint_every: Annotated[float | None, HARDWARE(help="Seconds between two checkpoints (60).")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set a study of that name aside and start over.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    track: Track = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON, one object per line.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Tables and recalls of every method at the end.")] = False,
    notify: Annotated[
        str | None, typer.Option(metavar="URL", help="Webhook that is sent the summary, as JSON, when the search ends.")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Search settings, train the winner ten times, evaluate it once, export and register it. Run again to resume."""
    given = locals()  # by the names of the settings
    from scdgn.search.notify import notifying
    from scdgn.search.shown.overview import go_on
    from scdgn.search.studies import Interrupted, run
    from scdgn.threads import share_cores

    share_cores()
    settings = _asked(given)
    if dry_run:
        from scdgn.search.plan import plan

        for lines in plan(settings, fresh):
            print("\n".join(lines))
        return 0
    secret = [address for address in (settings.storage, settings.checkpoints) if address is not None]
    try:
        with (
            notifying(notify, settings.name, lambda text: say(text, quiet), *secret) as message,
            watching(as_json, quiet) as watch,
        ):
            message["summaries"] = summaries = run(settings, watch, fresh=fresh, track=track)
    except Interrupted:
        shorter = go_on(settings.name, settings.studies)
        say(f"stopped; the same command goes on from here, as does `{shorter}`", quiet)
        raise SystemExit(130) from None  # said already
    if not as_json:
        _print_results(summaries, settings, verbose, quiet)
    return 0


def status(
    name: Annotated[list[str] | None, typer.Argument(help="Names of studies; without one, all are listed.")] = None,
    studies: Studies = STUDIES,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, until they are done or nobody works on them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All settings of all trials, as one JSON object.")] = False,
) -> None:
    """Trials of a study: counts, the best so far with its settings, and every trial."""
    from rich.console import Console

    from scdgn.errors import SettingsError
    from scdgn.search.folder import find_study, studies_under
    from scdgn.search.shown.following import follow
    from scdgn.search.shown.overview import fleet_table, status_line, trial_styles, trial_table
    from scdgn.search.shown.overview import status as look_at
    from scdgn.search.shown.verdict import verdict

    def look() -> list[dict[str, Any]]:
        folders = [folder for one in name for folder in find_study(studies, one)] if name else studies_under(studies)
        return [look_at(folder) for folder in folders]

    if watch and as_json:
        raise SettingsError("--watch is for people, --json for programs: leave one of them out")
    if watch:
        follow(look, Console())
        return
    found = look()
    if as_json:
        for one in found:
            one["summary"] = one["summary"] and one["summary"].to_json()
        print_json(found[0] if name and len(found) == 1 else {"studies": found})
        return
    for one in found:
        if not name:
            print(status_line(one))
            continue
        title, header, rows = trial_table(one)
        print_table(title, header, rows, quiet=False, styles=trial_styles(one)) if rows else print(title)
        if (workers := fleet_table(one)) is not None:
            print_table(*workers, quiet=False)
        for line in one["words"]:
            print("\n".join(folded(line.split(", "), width_of(sys.stdout))))
    for sentence in verdict([one["summary"] for one in found if one["summary"]] if name else []):
        print(in_lines(sentence, sys.stdout))
    if not found:
        say(f"there is no study in {studies}", quiet=False)


def compare(names: Names, studies: Studies = STUDIES, as_json: options.AsJson = False) -> None:
    """Finished studies side by side."""
    from scdgn.errors import DataError
    from scdgn.search.folder import find_study
    from scdgn.search.shown.overview import compare_table, warnings_of

    folders = [folder for name in names for folder in find_study(studies, name)]
    summaries = [summary for folder in folders if (summary := folder.read_summary()) is not None]
    unfinished = [str(folder.path.relative_to(studies)) for folder in folders if folder.read_summary() is None]
    if not summaries:
        raise DataError(f"none of {', '.join(names)} is finished: run `scdgn search` again to go on")
    if as_json:
        documents = [summary.to_json() for summary in summaries]
        print_json({"studies": documents, "unfinished": unfinished, "warnings": warnings_of(summaries)})
        return
    title, header, rows = compare_table(summaries)
    print_table(title, header, rows, quiet=False)
    for warning in warnings_of(summaries):
        say(f"compare with care: {warning}", quiet=False)
    if unfinished:
        say(f"not finished, and left out: {', '.join(unfinished)}", quiet=False)


def export(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to copy the model to.", metavar="MODEL_DIR")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make it the champion.")] = False,
    overwrite: Overwrite = False,
    studies: Studies = STUDIES,
    as_json: options.AsJson = False,
) -> None:
    """Copy a study's model out, and register it in MLflow if that is still missing."""
    from scdgn.search.tracking.registry import export_study

    registration = export_study(studies, name, output, promote, overwrite)
    if as_json:
        print_json(vars(registration))
        return
    if output is not None:
        say(f"model written to {output}", quiet=False)
    say(_registered(registration), quiet=False)


def sync(name: Names, studies: Studies = STUDIES) -> None:
    """Write to MLflow what is missing there, as after its server was away."""
    from scdgn.search.folder import find_study
    from scdgn.search.tracking.tracker import sync as write

    for one in name:
        for folder in find_study(studies, one):
            written = write(folder)
            say(f"{folder.path.relative_to(studies)}: {written}", quiet=False)


def ui(
    studies: Studies = STUDIES,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = HOST,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = PORT,
) -> int:
    """Open the MLflow UI of the studies, as mlflow.env says."""
    import webbrowser

    from scdgn.search.tracking.ui import serve

    def ready(address: str, compared: str | None) -> None:
        say(f"all trials, the best ones first: {address}", quiet=False)
        if compared is not None:
            say(f"the best ten side by side: {compared}", quiet=False)
        if sys.stdout.isatty():
            webbrowser.open(address)

    try:
        return serve(studies, host, port, ready)
    except KeyboardInterrupt:  # the way to end it
        return 0


EXAMPLES: dict[Callable[..., Any], str] = {
    search: "search cells.h5ad --labels-key celltype --batch-key tech --test-batch new --method all --name islets",
    status: "status islets --watch",
    compare: "compare islets/nn islets/dann",
    export: "export islets -o my_model",
    sync: "sync islets",
    ui: "ui --port 5000",
}


@contextmanager
def watching(as_json: bool, quiet: bool) -> Iterator[Watcher]:
    """The progress display that suits the output."""
    from rich.console import Console

    from scdgn.search.shown.progress import Display, JsonEvents, Lines
    from scdgn.search.shown.watching import Watcher

    console = Console(stderr=True)
    if as_json:
        yield JsonEvents()
    elif quiet:
        yield Watcher()
    elif console.is_terminal:
        with Display(console) as display:
            yield display
    else:
        yield Lines()


def _asked(given: Mapping[str, Any]) -> StudySettings:
    """The settings of a search, from its options; of one that was begun, by its name alone."""
    from scdgn.cells.sources import with_column_faults
    from scdgn.errors import SettingsError, nearest
    from scdgn.search.folder import is_name, studies_under
    from scdgn.search.study.documents import named_cells, of_the_study, read_begun, read_study

    said = of_the_study(given)
    config, name = given["config"], given["name"]
    if config is None and name is not None and not {"data", "dataset", "split"} & said.keys() and is_name(name):
        place = said.get("studies", STUDIES)
        if not (begun := studies_under(place.joinpath(*name.split("/")))):
            known = nearest(name, [one.path.relative_to(place) for one in studies_under(place)])
            raise SettingsError(
                f"no study in {place} is called {name!r}: {known}; to begin it, give either a file DATA.h5ad or "
                "--dataset NAME"
            )
        return read_begun(begun, name, said)
    with with_column_faults(named_cells(config, said)):
        return read_study(config, said)


def _print_results(summaries: Sequence[AnySummary], settings: StudySettings, verbose: bool, quiet: bool) -> None:
    """What came out of a search, in tables and words."""
    from scdgn.search.shown.overview import compare_table, searches_of, spread, summary_tables, warnings_of
    from scdgn.search.shown.verdict import next_steps, verdict
    from scdgn.search.study.settings import EACH

    for summary in summaries:
        if verbose or len(summaries) == 1:
            for title, header, rows in summary_tables(summary, verbose):
                print_table(title, header, rows, quiet=False)
    if len(summaries) > 1:
        title, header, rows = compare_table(summaries)
        print_table(title, header, rows, quiet=False)
        for line in spread(summaries):
            print(in_lines(line, sys.stdout))
        if settings.source.test_batch == EACH:
            say("each model was trained without another batch: none is registered", quiet)
        else:
            for warning in warnings_of(summaries):
                say(f"compare with care: {warning}", quiet)
    for summary in summaries:
        for line in _where(settings.studies, summary):
            say(line, quiet)
    for registration in (one.registered for one in searches_of(summaries) if one.registered):
        say(_registered(registration), quiet)
    for sentence in verdict(summaries):
        print(in_lines(sentence, sys.stdout))
    if steps := next_steps(summaries, settings.studies, settings.name):
        say("Next:", quiet)
        for command in steps:
            say_command(command, quiet)


def _where(studies: Path, summary: AnySummary) -> list[str]:
    """Where the results lie."""
    folder = studies / summary.study
    if summary.protocol != "search":
        return [f"table in {folder / 'finalists.csv'}"]
    lines = [f"model in {folder / summary.model.path}, table in {folder / 'finalists.csv'}"]
    if summary.annotated:
        lines.append(f"annotated cells in {folder / summary.annotated}")
    return lines


def _registered(registration: Registration) -> str:
    alias = f", {registration.alias}" if registration.alias else ""
    return f"registered as {registration.name} version {registration.version}{alias}: {registration.reason}"
