"""What a study is asked: from flags and TOML, validated as a whole, written down and read again."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from scdgn.cells.fields import Fields
from scdgn.cells.sources import Source
from scdgn.errors import SettingsError
from scdgn.search.study.documents import from_document, read_enqueued, read_study, to_document
from scdgn.search.study.settings import CONTINUABLE, EACH, StudySettings, leaves

FULL = """
[study]
name = "islets"
method = "dann"
trials = 30
timeout = 3600
fold_seeds = 2
reference = true
enqueue = [{lr = 0.001}, {hidden = 64, schedule = "linear"}]

[data]
data = "islets.h5ad"
labels_key = "celltype"
batch_key = "tech"
test_batch = "fluidigmc1"
adapt = true

[space]
hidden = {low = 64, high = 256, log = true}
dropout = [0.0, 0.5]
latent = 32

[sampler]
name = "TPESampler"
n_startup_trials = 5

[pruner]
name = "PercentilePruner"
percentile = 25.0
"""


def written(place: Path, text: str) -> Path:
    path = place / "study.toml"
    path.write_text(text)
    return path


def faults_of(*read: Any, **changes: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        if read:
            read_study(*read)
        else:
            StudySettings(**{"name": "s", **changes})
    return caught.value.faults


def test_a_file_says_all(tmp_path: Path) -> None:
    settings = read_study(written(tmp_path, FULL), {})
    assert settings == StudySettings(
        name="islets",
        source=Source(data=Path("islets.h5ad"), fields=Fields("celltype", "tech"), test_batch="fluidigmc1", adapt=True),
        method="dann",
        trials=30,
        timeout=3600,
        fold_seeds=2,
        space={"hidden": {"low": 64, "high": 256, "log": True}, "dropout": [0.0, 0.5], "latent": 32},
        sampler_options={"n_startup_trials": 5},
        pruner="PercentilePruner",
        pruner_options={"percentile": 25.0},
        reference=True,
        enqueue=({"lr": 0.001}, {"hidden": 64, "schedule": "linear"}),
    )


def test_flags_override_the_file(tmp_path: Path) -> None:
    flags = {
        "trials": 5, "name": None, "test_batch": "smartseq2", "labels_key": "type", "adapt": False,
        "space": {"latent": 16}, "pack": 3,
    }  # fmt: skip
    settings = read_study(written(tmp_path, FULL), flags)
    assert (settings.name, settings.trials, settings.pack) == ("islets", 5, 3)
    assert settings.source.test_batch == "smartseq2" and settings.source.adapt is False
    assert settings.source.fields == Fields("type", "tech")
    assert settings.space["latent"] == 16 and settings.space["dropout"] == [0.0, 0.5]


def test_flags_alone_will_do() -> None:
    settings = read_study(None, {"name": "s", "data": "cells.h5ad", "labels_key": "celltype", "sampler": "QMCSampler"})
    assert settings.source.data == Path("cells.h5ad") and settings.sampler == "QMCSampler"
    assert settings.trials == 50 and settings.source.fields == Fields("celltype", None)


def test_what_is_written_down_is_what_was_asked(tmp_path: Path) -> None:
    asked = read_study(written(tmp_path, FULL), {})
    text = tomli_w.dumps(to_document(asked))
    assert from_document(tomllib.loads(text)) == asked
    assert read_study(written(tmp_path, text), {}) == asked
    plain = StudySettings("s")
    assert from_document(tomllib.loads(tomli_w.dumps(to_document(plain)))) == plain


def test_every_setting_is_written_down() -> None:
    changed = StudySettings(
        "s", Source(dataset="pancreas1", path=Path("files"), query="q", adapt=True), "dann", 3, 1.5, 4, 2, "accuracy",
        "training-domain", 3, 700, {"hidden": 8}, "RandomSampler", {}, "NopPruner", {}, 2, True, False,
        ({"lr": 0.001},), 2, 3, 4, False, "never", True, True, True, "seed-best-of-10", 2, "sqlite:///s.db",
        Path("elsewhere"), "cpu", "bf16", "ray", "auto", 0.5, 2, 4, 5, "s3://bucket/checkpoints", 5.0,
    )  # fmt: skip
    defaults = StudySettings("t")
    for entry in fields(StudySettings):
        if entry.name not in ("sampler_options", "pruner_options"):
            assert getattr(changed, entry.name) != getattr(defaults, entry.name), entry.name
    assert from_document(tomllib.loads(tomli_w.dumps(to_document(changed)))) == changed


def test_what_a_study_continues_with_are_settings() -> None:
    assert set(CONTINUABLE) <= {entry.name for entry in fields(StudySettings)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": ""}, "name '' is no name for a folder"),
        ({"name": "../up"}, "name '../up' is no name"),
        ({"name": "/root"}, "name '/root' is no name"),
        ({"name": "a//b"}, "name 'a//b' is no name"),
        ({"name": ".hidden"}, "name '.hidden' is no name"),
        ({"method": "DANN"}, "method is 'DANN': choose one of nn, dann, scdgn, all"),
        ({"metric": "f1"}, "metric is 'f1'"),
        ({"selection": "oracle"}, "selection is 'oracle': choose one of leave-one-domain-out, training-domain"),
        ({"protocol": "best"}, "protocol is 'best'"),
        ({"trials": 0}, "trials is 0: give at least 1"),
        ({"trials": 2.5}, "trials is 2.5: give a whole number"),
        ({"trials": "many"}, "trials is 'many': give a whole number"),
        ({"trials": True}, "trials is True: give a whole number"),
        ({"timeout": -1.0}, "timeout is -1.0: give at least 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"max_folds": 1}, "max_folds is 1: give at least 2"),
        ({"final_seeds": 0}, "final_seeds is 0"),
        ({"reference": "yes"}, "reference is 'yes': give true or false"),
        ({"enqueue": 5}, "enqueue is 5"),
        ({"enqueue": ({"lr": 0.1}, 3)}, "enqueue"),
        ({"source": Source(adapt="no")}, "adapt is 'no': give true or false"),
        ({"space": {"hiden": 8}}, "did you mean hidden"),
        ({"method": "all", "space": {"margin": -1}}, "margin is -1"),
    ],
)  # fmt: skip
def test_a_setting_that_is_wrong(change: dict[str, Any], told: str) -> None:
    (fault,) = faults_of(**change)
    assert told in fault


def test_every_fault_is_told_at_once() -> None:
    assert len(faults_of(name="..", trials=0, metric="f1", reference=1, space={"hiden": 8, "latent": 0})) == 6


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trials = 5", "trials in .* stands outside a table"),
        ("[study]\nname='s'\n[spaces]", "unknown table .spaces.* did you mean space"),
        ("[study]\nname='s'\ntrial = 5", "unknown setting 'trial' of .study.: did you mean trials"),
        ("[study]\nname='s'\n[data]\nlabel_key='x'", "unknown setting 'label_key' of .data.: did you mean labels_key"),
        ("[study]\nname='s'\nsource='x'", "unknown setting 'source'"),
        ("[study]\ntrials=5", "the study has no name: give --name NAME"),
        ("[study]\nname=5", "name is 5: give text"),
        ("[study]\nname='s'\nstudies=5", "studies is 5: give text"),
        ("[study]\nname='s'\nenqueue=5", "enqueue is 5"),
        ("[study]\nname='s'\n[data]\ndata=5", "data is 5: give text"),
        ("[study]\nname='s'\n[data]\nadapt='no'", "adapt is 'no': give true or false"),
        ("[study]\nname='s'\n[sampler]\nname=5", "sampler is 5: give text"),
        ("[study\n", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        read_study(written(tmp_path, text), {})


@pytest.mark.parametrize(("given", "kept"), [(["c"], "c"), (["c", "a", "c"], ["c", "a"]), ("c", "c"), (None, None)])
def test_batches_to_hold_out_are_kept_as_they_always_were_where_there_is_one(
    given: list[str] | str | None, kept: list[str] | str | None
) -> None:
    settings = read_study(None, {"name": "s", "data": "x.h5ad", "test_batch": given})
    document = to_document(settings)
    assert document["data"].get("test_batch") == kept
    assert from_document(document).source == settings.source
    assert settings.source.held_out == ((kept,) if isinstance(kept, str) else tuple(kept or ()))


def test_a_study_is_called_after_its_file(tmp_path: Path) -> None:
    for stem, name in (("islets", "islets"), ("my islets(1)", "my_islets_1_")):
        assert read_study(None, {"data": f"{stem}.h5ad"}).name == name


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    text = "[study]\ntrial = 5\nseeds = 3\n[data]\nlabel_key = 'x'\n[extra]\n"
    assert len(faults_of(written(tmp_path, text), {})) == 5


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere.toml cannot be read .* give a TOML file"):
        read_study(tmp_path / "nowhere.toml", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        read_enqueued(tmp_path)


def test_trials_to_enqueue_from_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[[trial]]\nlr = 0.001\n[[trial]]\nhidden = 64\nschedule = 'linear'\n")
    assert read_enqueued(path) == ({"lr": 0.001}, {"hidden": 64, "schedule": "linear"})
    settings = read_study(None, {"name": "s", "enqueue": path})
    assert settings.enqueue == read_enqueued(path)
    for text in ("lr = 0.001", "trial = 5", "[trial]\nlr = 0.001", "[[trial]]\nlr = 1\n[[other]]\n", ""):
        with pytest.raises(
            SettingsError, match=r"does not list trials: write the settings of each under \[\[trial\]\]"
        ):
            read_enqueued(written(tmp_path, text))


def test_one_study_is_its_only_leaf() -> None:
    settings = StudySettings("s", space={"hidden": 8})
    assert leaves(settings) == [settings]


def test_all_methods_are_siblings_with_what_concerns_them() -> None:
    settings = StudySettings(
        "s", Source(test_batch="c", adapt=True), "all", trials=7, space={"margin": 2.0, "lambda_max": 0.1, "hidden": 8}
    )
    nn, dann, scdgn = leaves(settings)
    assert [leaf.name for leaf in (nn, dann, scdgn)] == ["s/nn", "s/dann", "s/scdgn"]
    assert [leaf.method for leaf in (nn, dann, scdgn)] == ["nn", "dann", "scdgn"]
    assert {leaf.trials for leaf in (nn, dann, scdgn)} == {7}
    assert [sorted(leaf.space) for leaf in (nn, dann, scdgn)] == [
        ["hidden"], ["hidden", "lambda_max"], ["hidden", "lambda_max", "margin"],
    ]  # fmt: skip
    assert [leaf.source.adapt for leaf in (nn, dann, scdgn)] == [True, True, True]
    assert all(leaf.spaces()[0].method == leaf.method for leaf in (nn, dann, scdgn))


def test_batches_repeats_and_methods_multiply() -> None:
    settings = StudySettings("s", Source(test_batch=EACH), "all", seed=3, repeats=2)
    found = leaves(settings, ("a", "b"))
    assert len(found) == len({leaf.name for leaf in found}) == 12
    assert "s/b/repeat2/dann" in {leaf.name for leaf in found}
    for leaf in found:
        _, batch, repeat, method = leaf.name.split("/")
        assert (leaf.source.test_batch, leaf.method, leaf.repeats) == (batch, method, 1)
        assert leaf.seed == (3 if repeat == "repeat1" else 1003)
        assert leaf == replace(leaf)  # valid in itself


def test_every_batch_has_a_folder_of_its_own() -> None:
    batches = ("10x v2", "10x/v2", "10x_v2", "..", "-", "_10x_v2", "é", "a\nb")
    found = leaves(StudySettings("s", Source(test_batch=EACH)), batches)
    assert [leaf.source.test_batch for leaf in found] == list(batches)
    assert len({leaf.folder for leaf in found}) == len(batches)
    assert all(leaf.folder.parent == Path("studies/s") for leaf in found)


def test_the_folder_is_below_the_studies() -> None:
    assert StudySettings("a/b", studies=Path("x")).folder == Path("x/a/b")
