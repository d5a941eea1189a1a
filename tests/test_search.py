"""The search as users run it: from a file to summary, table and model."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData

from scdgn.cells.h5ad import write_h5ad
from scdgn.model.bundle import Bundle
from scdgn.model.bundle_files import WEIGHTS
from scdgn.search.folder import StudyFolder
from scdgn.search.left_out import read, together
from scdgn.search.records import settings_of
from scdgn.search.stages.committee import scores
from scdgn.search.study.documents import from_document
from scdgn.search.study.study import read_records
from tests.faults import KEYS, Ran, done, run, tiny, tree

CELLS = {"a": 50, "b": 50, "c": 40, "d": 40}
SPACE = """
[study]
trials = 3
final_seeds = 2
confirm = 2
confirm_seeds = 1
[space]
hidden = [8, 12]
latent = 4
domain_code = 4
epochs = {low = 3, high = 5}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four batches of simulated cells and a study file."""
    folder = tmp_path_factory.mktemp("search")
    write_h5ad(tiny(cells=CELLS), folder / "cells.h5ad")
    (folder / "study.toml").write_text(SPACE)
    return folder


def search(place: Path, name: str, *words: str | Path) -> Ran:
    return run(
        *("search", place / "cells.h5ad", *KEYS, "--name", name, "--studies", place / "studies"),
        *("--config", place / "study.toml", "--no-track", *words),
    )


def summary_of(place: Path, name: str) -> Any:
    summary = StudyFolder(place / "studies" / name).read_summary()
    assert summary is not None
    return summary


@pytest.fixture(scope="module")
def searched(place: Path) -> Ran:
    ran = search(place, "plain", "--test-batch", "d")
    assert ran.status == 0, ran.err
    return ran


def test_all_stages_leave_their_results(place: Path, searched: Ran) -> None:
    folder = StudyFolder(place / "studies" / "plain")
    summary = summary_of(place, "plain")
    assert sum(summary.trials.values()) == 3
    assert [fold.name for fold in summary.folds] == ["a", "b", "c"]
    assert {one.protocol for one in summary.protocols} == {
        "leave-one-domain-out",
        "training-domain",
        "test-domain oracle",
    }
    bundle = Bundle.load(folder.model)
    assert len(bundle.models) == 2 and bundle.provenance["record"]["study"] == "plain"
    rows = list(csv.DictReader(folder.finalists.read_text().splitlines()))
    assert [row["model"] for row in rows] == [
        *("seed 100", "seed 101", "mean", "standard deviation", "ensemble", "best of 2")
    ]
    test = summary.final.test.macro_f1
    assert float(rows[2]["test_macro_f1"]) == pytest.approx(np.mean(test.by_seed), abs=1e-6)
    assert float(rows[5]["test_macro_f1"]) == pytest.approx(max(test.by_seed), abs=1e-6)
    assert "oracle" in rows[5]["note"] and "best of 2 (oracle" in searched.out
    assert "published settings are not tried" in searched.err


def test_the_same_command_tells_again_and_changes_nothing(place: Path, searched: Ran) -> None:
    before = tree(place / "studies" / "plain")
    again = search(place, "plain", "--test-batch", "d")
    assert again.status == 0 and again.out == searched.out
    after = tree(place / "studies" / "plain")
    assert before == after


def test_a_signal_at_the_registration_is_told_as_one_before(
    place: Path, searched: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scdgn.search.studies.configure", lambda _: None)
    monkeypatch.setattr("scdgn.search.studies.tracked", lambda watch, *_: nullcontext(lambda: nullcontext(watch)))
    monkeypatch.setattr("scdgn.search.studies.register_champion", interrupted)
    ran = search(place, "plain", "--test-batch", "d", "--track")
    assert ran.status == 130 and ran.err.splitlines()[-1].startswith(
        "stopped; the same command goes on from here, as does `scdgn search --name"
    )


def test_more_trials_continue_the_study(place: Path) -> None:
    assert search(place, "more", "--test-batch", "d", "--trials", "2").status == 0
    first = [(trial["number"], trial["value"]) for trial in status(place, "more")["trials"]]
    assert search(place, "more", "--test-batch", "d", "--trials", "4").status == 0
    trials = [(trial["number"], trial["value"]) for trial in status(place, "more")["trials"]]
    assert trials[:2] == first and [number for number, _ in trials] == [0, 1, 2, 3]
    assert sum(summary_of(place, "more").trials.values()) == 4


def status(place: Path, name: str) -> dict[str, Any]:
    return done("status", name, "--studies", place / "studies", "--json").record


def test_status_tells_every_trial(place: Path, searched: Ran) -> None:
    found = status(place, "plain")
    assert sum(found["states"].values()) == 3 and found["owner"] is None
    assert all(trial["settings"]["hidden"] in (8, 12) for trial in found["trials"])
    complete = [trial for trial in found["trials"] if trial["state"] == "complete"]
    assert all(trial["step"] == 8 for trial in complete)
    assert found["best"]["value"] == max(trial["value"] for trial in complete)
    table = done("status", "plain", "--studies", place / "studies").out
    assert f"best: trial {found['best']['number']}" in table


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_changed_settings_and_cells_are_refused(place: Path, searched: Ran, words: tuple[str, ...]) -> None:
    ran = search(place, "plain", "--test-batch", "d", "--method", "dann", "--set", "lr=[0.1, 0.2]", *words)
    assert ran.status == 2 and "method was 'scdgn' and is now 'dann'" in ran.err and "lr was" in ran.err
    ran = search(place, "plain", "--test-batch", "c", *words)
    assert ran.status == 2 and "the training cells are not the same" in ran.err


def test_fresh_sets_the_old_study_aside(place: Path) -> None:
    assert search(place, "old", "--test-batch", "d", "--trials", "1").status == 0
    ran = search(place, "old", "--test-batch", "d", "--trials", "1", "--method", "nn", "--fresh")
    assert ran.status == 0, ran.err
    (aside,) = (place / "studies").glob("old.before-*")
    assert StudyFolder(aside).read_summary() is not None
    assert summary_of(place, "old").method == "nn"


def test_all_methods_are_sibling_studies_with_equal_budgets(place: Path) -> None:
    ran = search(place, "siblings", "--test-batch", "d", "--method", "all")
    assert ran.status == 0, ran.err
    summaries = [summary_of(place, f"siblings/{method}") for method in ("nn", "dann", "scdgn")]
    assert [sum(summary.trials.values()) for summary in summaries] == [3, 3, 3]
    assert len({summary.data.fingerprint for summary in summaries}) == 1
    compared = done("compare", "siblings", "--studies", place / "studies", "--json").record
    assert len(compared["studies"]) == 3 and compared["warnings"] == []
    assert "siblings/dann" in done("compare", "siblings", "--studies", place / "studies").out


def test_each_batch_in_turn(place: Path) -> None:
    ran = search(place, "each", "--test-batch", "each", "--method", "nn", "--trials", "1")
    assert ran.status == 0, ran.err
    tested = {name: summary_of(place, f"each/{name}").data.test_batches for name in CELLS}
    assert tested == {name: (name,) for name in CELLS}


def test_repeats_search_with_other_seeds(place: Path) -> None:
    ran = search(place, "repeats", "--test-batch", "d", "--search-repeats", "2", "--trials", "2")
    assert ran.status == 0, ran.err
    first, second = (status(place, f"repeats/repeat{number}")["trials"] for number in (1, 2))
    assert first[0]["settings"] != second[0]["settings"]


def test_the_preset_is_tried_and_always_scored_again(place: Path) -> None:
    words = ("search", place / "cells.h5ad", *KEYS, "--name", "preset", "--studies", place / "studies", "--no-track")
    words = (*words, "--test-batch", "d", "--method", "nn", "--trials", "5", "--confirm", "1", "--final-seeds", "1")
    ran = run(*words, "--no-portfolio")
    assert ran.status == 0, ran.err
    origins = {trial["origin"]: trial for trial in status(place, "preset")["trials"]}
    assert origins["published"]["settings"]["hidden"] == 1136
    number = origins["preset"]["number"]
    confirmed = summary_of(place, "preset").confirmed
    best = status(place, "preset")["best"]["number"]
    assert set(confirmed) == {best, number}
    winner = summary_of(place, "preset").winner
    assert winner.score == pytest.approx(np.mean(list(winner.folds.values())))


@pytest.mark.parametrize("method", ["nn", "dann"])
def test_a_query_comes_out_annotated(place: Path, method: str) -> None:
    ran = search(place, f"query-{method}", "--query", "d", "--adapt", "--method", method)
    assert ran.status == 0, ran.err
    annotated = anndata.read_h5ad(place / "studies" / f"query-{method}" / "annotated.h5ad")
    assert annotated.n_obs == CELLS["d"] and annotated.obs["scdgn_label"].notna().all()
    summary = summary_of(place, f"query-{method}")
    assert summary.final.test is None and summary.winner.folds
    lost = summary.model.adaptation_gains
    assert len(lost) == len(summary.folds) and (summary.adapted or np.mean(lost) < 0)
    assert ("chose not to adapt" in ran.out) == (not summary.adapted)
    assert ("TRANSDUCTIVE" in ran.out) == summary.adapted


def test_a_query_of_another_file_comes_out_annotated(place: Path, tmp_path: Path) -> None:
    write_h5ad(tiny(cells={"e": 30}, seed=1), tmp_path / "query.h5ad")
    ran = search(place, "file", "--query", tmp_path / "query.h5ad", "--method", "nn", "--trials", "1")
    assert ran.status == 0, ran.err
    annotated = anndata.read_h5ad(place / "studies" / "file" / "annotated.h5ad")
    assert annotated.n_obs == 30 and annotated.obs["scdgn_label"].notna().all()


def test_an_unlabelled_category_comes_out_annotated(place: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(place / "cells.h5ad")
    labels = adata.obs["celltype"].astype(str)
    labels[adata.obs["tech"] == "d"] = "unknown"
    adata.obs["celltype"] = labels
    write_h5ad(adata, tmp_path / "cells.h5ad")
    (tmp_path / "study.toml").write_text(SPACE)
    ran = search(tmp_path, "category", "--unlabeled-category", "unknown", "--method", "nn")
    assert ran.status == 0, ran.err
    annotated = anndata.read_h5ad(tmp_path / "studies" / "category" / "annotated.h5ad")
    assert annotated.n_obs == CELLS["d"]
    assert set(annotated.obs["scdgn_label"]) <= {"B", "NK", "T"}


def test_refit_and_single(place: Path) -> None:
    ran = search(place, "refit", "--test-batch", "d", "--refit-all", "--single", "--trials", "1")
    assert ran.status == 0, ran.err
    bundle = Bundle.load(place / "studies" / "refit" / "model")
    assert len(bundle.models) == 1 and bundle.provenance["training_cells"] == sum(CELLS.values())
    assert summary_of(place, "refit").model.trained_on == "all labelled cells"


def test_the_write_ups_best_of_ten_is_marked(place: Path) -> None:
    ran = search(place, "ten", "--test-batch", "d", "--protocol", "seed-best-of-10")
    assert ran.status == 0, ran.err
    summary = summary_of(place, "ten")
    assert len(summary.runs) == 10 and len({run.margin for run in summary.runs}) == 10
    assert summary.best_oracle.accuracy == max(run.accuracy for run in summary.runs)
    assert "oracle" in ran.out and not (place / "studies" / "ten" / "model").exists()


def test_json_events_are_one_object_per_line(place: Path) -> None:
    ran = search(place, "events", "--test-batch", "d", "--json")
    events = [json.loads(line) for line in ran.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("ended") == 3 and kinds[-1] == "done" and "begun" in kinds
    assert events[-1]["summary"]["study"] == "events"


def test_a_dry_run_writes_nothing(place: Path, searched: Ran) -> None:
    before = tree(place)
    for words, told in (((), "it exists: 3 trials done"), (("--fresh",), "it exists, and would be set aside")):
        ran = search(place, "plain", "--test-batch", "d", "--dry-run", *words)
        assert ran.status == 0 and told in ran.out, ran.err
    ran = search(place, "dry", "--dry-run")
    assert ran.status == 0 and "no batch is held out (--test-batch)" in ran.out, ran.err
    ran = search(place, "dry", "--test-batch", "d", "--dry-run")
    assert ran.status == 0, ran.err
    assert tree(place) == before
    for words in ("3 trials", "a: trains on 90, scored on 50 cells", "time:", "memory:", "hidden: 8 or 12"):
        assert words in ran.out, ran.out


def test_reference_and_enqueued_trials_come_first(place: Path, tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text("[[trial]]\nhidden = 8\nlr = 0.001\n\n[[trial]]\nhidden = 12\n")
    ran = search(place, "queue", "--test-batch", "d", "--enqueue", tmp_path / "first.toml", "--trials", "2")
    assert ran.status == 0, ran.err
    first, second = status(place, "queue")["trials"]
    assert (first["settings"]["hidden"], first["settings"]["lr"], first["origin"]) == (8, 0.001, "enqueued")
    assert second["settings"]["hidden"] == 12
    (tmp_path / "wrong.toml").write_text("[[trial]]\nhidden = 9\nlr = 7.0\n")
    ran = search(place, "wrong", "--test-batch", "d", "--enqueue", tmp_path / "wrong.toml")
    assert ran.status == 2 and "hidden = 9" in ran.err and "lr = 7.0" in ran.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--trials", "0"), ("trials is 0", "at least 1")),
        (("--sampler", "TPE"), ("sampler is 'TPE'", "TPESampler")),
        (("--pruner", "Median"), ("pruner is 'Median'", "MedianPruner")),
        (("--set", "hiden=3"), ("'hiden'", "did you mean hidden")),
        (("--set", "margin={low=3, high=1}"), ("margin", "low 3", "exchange")),
        (("--storage", "nonsense://x"), ("nonsense://x",)),
        (("--device", "cuda:7"), ("cuda:7",)),
    ],
)
def test_mistakes_are_told_in_one_line(place: Path, words: tuple[str, ...], told: tuple[str, ...]) -> None:
    ran = search(place, "mistake", "--test-batch", "d", *words)
    assert ran.status == 2
    assert all(word in ran.err for word in told), ran.err
    assert ran.err.strip().splitlines()[-1].startswith("error: ")


def test_unknown_studies_are_told(place: Path, searched: Ran) -> None:
    for command in ("status", "compare", "export", "sync"):
        ran = run(command, "plian", "--studies", place / "studies")
        assert ran.status == 2 and "did you mean plain" in ran.err


def test_shuffled_test_labels_change_nothing_in_the_study(place: Path, searched: Ran, tmp_path: Path) -> None:
    adata: AnnData = anndata.read_h5ad(place / "cells.h5ad")
    labels = adata.obs["celltype"].astype(str).to_numpy()
    test = np.flatnonzero(adata.obs["tech"] == "d")
    labels[test] = np.random.default_rng(0).permutation(labels[test])
    assert (labels != adata.obs["celltype"].astype(str)).any()
    adata.obs["celltype"] = labels
    write_h5ad(adata, tmp_path / "cells.h5ad")
    (tmp_path / "study.toml").write_text(SPACE)
    assert search(tmp_path, "plain", "--test-batch", "d").status == 0
    kept = [known(StudyFolder(folder / "studies" / "plain")) for folder in (place, tmp_path)]
    assert kept[0] == kept[1]
    predictions = [StudyFolder(folder / "studies" / "plain").predictions(0) for folder in (place, tmp_path)]
    with np.load(predictions[0]) as one, np.load(predictions[1]) as other:
        assert np.array_equal(one["predicted"], other["predicted"])
    # Nor in what is chosen by it: the winner, the ensemble, whether it corrects, how sure it is.
    told = [summary_of(folder, "plain") for folder in (place, tmp_path)]
    assert told[0].winner == told[1].winner
    assert replace(told[0].model, test=None) == replace(told[1].model, test=None)
    assert replace(told[0].calibration, test=None) == replace(told[1].calibration, test=None)
    weights = [(StudyFolder(folder / "studies" / "plain").model / WEIGHTS).read_bytes() for folder in (place, tmp_path)]
    assert weights[0] == weights[1]


def test_the_exported_ensemble_is_trained_on_all_training_cells_and_told(place: Path, searched: Ran) -> None:
    summary, folder = summary_of(place, "plain"), StudyFolder(place / "studies" / "plain")
    model, bundle = summary.model, Bundle.load(folder.model)
    assert bundle.provenance["training_cells"] == summary.data.training_cells
    parts = model.parts
    assert parts[0].trial == summary.winner.number
    assert [len(part.models) for part in bundle.parts] == [part.models for part in parts]
    records = {one.number: one for one in read_records(folder, from_document(folder.read_settings()))}
    for part, told in zip(bundle.parts, parts, strict=True):
        assert settings_of(records[told.trial]) == (part.settings, part.preprocessing.settings)
    # Its score is that of what its trials said of the cells left out.
    left_out = {part.trial: read(folder.left_out(part.trial)) or [] for part in parts}
    joined = together(left_out, {part.trial: part.models for part in parts})
    assert model.score == pytest.approx(
        np.mean(scores([one.as_predicted(model.corrects, model.moves) for one in joined], "macro_f1"))
    )
    assert bundle.corrects == model.corrects and model.test is not None
    assert "the model exported" in searched.out


def test_the_winner_alone_and_never_corrected(place: Path) -> None:
    ran = search(place, "alone", "--test-batch", "d", "--no-ensemble", "--correct", "never", "--no-portfolio")
    assert ran.status == 0, ran.err
    model = summary_of(place, "alone").model
    assert len(model.parts) == 1 and not model.corrects
    # Asked otherwise, the same trials make another model.
    assert search(place, "alone", "--test-batch", "d", "--correct", "always", "--no-portfolio").status == 0
    assert summary_of(place, "alone").model.corrects
    assert Bundle.load(place / "studies" / "alone" / "model").corrects


def test_summaries_of_every_kind_come_back_as_they_were_written(place: Path, searched: Ran) -> None:
    for name, words in {
        "all": ("--test-batch", "d", "--refit-all"),
        "one": ("--test-batch", "d", "--single"),
        "untested": (),
        "oracle": ("--test-batch", "d", "--protocol", "seed-best-of-10"),
        "open": ("--query", "d", "--adapt", "--set", "scaling=standard-per-batch"),
    }.items():
        assert search(place, name, *words, "--trials", "1").status == 0
    for name in ("plain", "all", "one", "untested", "oracle", "open"):
        path = StudyFolder(place / "studies" / name).summary
        written = json.loads(path.read_text())
        del written["checksum"]
        assert summary_of(place, name).to_json() == written
    assert summary_of(place, "open").transductive


def known(folder: StudyFolder) -> list[dict[str, Any]]:
    """All that a study keeps of its trials but for times."""
    records = read_records(folder, from_document(folder.read_settings()))
    return [{**vars(record), "seconds": 0, "started": 0, "ended": 0} for record in records]
