"""Bundles: what is saved is what is loaded, and what is damaged is refused in one line."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import scdgn
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Method, Settings
from scdgn.core.correction import find_reference
from scdgn.errors import BundleError, DataError, OutputError, SettingsError
from scdgn.model.bundle import Bundle
from scdgn.model.bundle_files import DOCUMENT, FILES, WEIGHTS
from scdgn.model.fitting import fit
from tests.faults import SETTINGS, tiny, tree

VERSION_1 = Path(__file__).parent / "bundles" / "version1"

METHODS: tuple[Method, ...] = ("nn", "dann", "scdgn")


def dataset() -> Dataset:
    return from_anndata(tiny(), Fields("celltype", "tech"))


def trained(method: Method = "scdgn", seeds: int = 1, **changes: object) -> Bundle:
    cells = dataset()
    return fit(
        cells,
        np.arange(len(cells)),
        Settings.from_mapping({"method": method, **SETTINGS, **changes}),
        PreprocessSettings(n_top_genes=20),
        range(seeds),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two models with all that the model class and the command line add, not to be changed."""
    folder = tmp_path_factory.mktemp("bundles") / "model"
    bundle = trained("dann", seeds=2)
    fields = {"labels_key": "celltype", "batch_key": "tech", "values": "auto"}
    replace(bundle, provenance={**bundle.provenance, "fields": fields}).save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@cache
def several() -> Bundle:
    """Three parts: two of the same preprocessing, and one that looks at more genes, standardised."""
    one, two = trained("dann", seeds=2), trained("nn", latent=3)
    cells = dataset()
    wide = PreprocessSettings(n_top_genes=30, scaling="standard")
    three = fit(cells, np.arange(len(cells)), Settings.from_mapping(SETTINGS), wide, [5])
    return replace(one, parts=one.parts + two.parts + three.parts)


def reseal(folder: Path, document: dict[str, Any]) -> None:
    """Write the document with a checksum that fits, as whoever forges a bundle would."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    weights = (folder / WEIGHTS).read_bytes() if (folder / WEIGHTS).exists() else b""
    document["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode() + weights).hexdigest()
    (folder / DOCUMENT).write_text(json.dumps(document))


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / DOCUMENT).read_text())
    return found


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    told = str(caught.value)
    assert "\n" not in told and str(folder) in told
    return told


# --- saved and loaded


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_loaded_is_what_was_saved(method: Method, seeds: int, tmp_path: Path) -> None:
    bundle = trained(method, seeds)
    bundle.save(tmp_path / "model")
    loaded = Bundle.load(tmp_path / "model")
    x = bundle.input(dataset())
    assert torch.equal(loaded.input(dataset()).leading, x.leading)
    assert np.array_equal(loaded.probabilities(x), bundle.probabilities(x))
    assert np.array_equal(loaded.latent(x), bundle.latent(x))
    for name in ("settings", "cell_types", "batch_names", "provenance", "history"):
        assert getattr(loaded, name) == getattr(bundle, name), name
    assert len(loaded.models) == seeds
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(FILES)


def test_a_bundle_written_before_genes_could_be_markers_predicts_as_it_did(copy: Path) -> None:
    expected = Bundle.load(copy)
    found = document(copy)
    for prepared in found["preprocessing"]:
        del prepared["settings"]["gene_selection"], prepared["settings"]["markers_per_type"]
    reseal(copy, found)
    loaded = Bundle.load(copy)
    assert loaded.preprocessing.settings == expected.preprocessing.settings
    x = expected.input(dataset())
    assert torch.equal(loaded.input(dataset()).leading, x.leading)
    assert np.array_equal(loaded.probabilities(x), expected.probabilities(x))


def test_a_bundle_saved_again_is_the_same_to_the_byte(saved: Path, tmp_path: Path) -> None:
    Bundle.load(saved).save(tmp_path / "again")
    assert tree(tmp_path / "again") == tree(saved)


def test_an_ensemble_averages_probabilities_and_keeps_the_first_latent(saved: Path) -> None:
    bundle = Bundle.load(saved)
    x = bundle.input(dataset())
    each = [bundle.take([place]) for place in range(2)]
    assert not np.allclose(each[0].probabilities(x), each[1].probabilities(x))
    assert np.allclose(bundle.probabilities(x), np.mean([one.probabilities(x) for one in each], axis=0), atol=1e-7)
    assert np.array_equal(bundle.latent(x), each[0].latent(x))


def test_the_document_is_plain_json_and_tells_where_the_model_comes_from(saved: Path) -> None:
    found = document(saved)
    assert found["format"] == "scdgn bundle" and [part["models"] for part in found["parts"]] == [2]
    assert found["provenance"]["scdgn"] == scdgn.__version__
    assert found["provenance"]["data"] == dataset().fingerprint()
    assert found["provenance"]["seeds"] == [0, 1]
    assert found["provenance"]["training_cells"] == 140
    assert found["cell_types"] == ["B", "NK", "T"] and found["parts"][0]["batch_names"] == ["a", "b", "c"]
    (preprocessing,) = found["preprocessing"]
    assert len(preprocessing["genes"]) == 20 and len(preprocessing["panel"]) == 40
    # NaN and Infinity are Python's additions to JSON, which other programs do not read.
    json.loads((saved / DOCUMENT).read_text(), parse_constant=lambda name: pytest.fail(name))


def test_saving_replaces_a_bundle_only_when_told(saved: Path, tmp_path: Path) -> None:
    one, two = trained(), trained(epochs=1)
    one.save(tmp_path / "model")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="--overwrite"):
        two.save(tmp_path / "model")
    assert tree(tmp_path) == before
    two.save(tmp_path / "model", overwrite=True)
    assert Bundle.load(tmp_path / "model").settings.epochs == 1
    assert set(tree(tmp_path)) == set(before)


# --- several parts


def test_parts_are_saved_and_loaded(tmp_path: Path) -> None:
    bundle = several()
    bundle.save(tmp_path / "model")
    loaded = Bundle.load(tmp_path / "model")
    x = loaded.input(dataset())
    for one, two in zip(loaded.all_outputs(x), bundle.all_outputs(bundle.input(dataset())), strict=True):
        assert np.array_equal(one, two)
    assert [len(part.models) for part in loaded.parts] == [2, 1, 1]
    for one, two in zip(loaded.parts, bundle.parts, strict=True):
        assert (one.settings, one.batch_names, one.history) == (two.settings, two.batch_names, two.history)
        assert one.preprocessing.equals(two.preprocessing)
    assert len(document(tmp_path / "model")["preprocessing"]) == 2
    loaded.save(tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "model")


def test_a_part_counts_by_its_models_and_the_first_one_leads() -> None:
    bundle, cells = several(), dataset()
    alone = [bundle.take([place]) for place in range(4)]
    each = [one.probabilities(one.input(cells)) for one in alone]
    x = bundle.input(cells)
    assert np.allclose(bundle.probabilities(x), np.mean(each, axis=0), atol=1e-6)
    assert np.array_equal(bundle.latent(x), alone[0].latent(alone[0].input(cells)))
    assert bundle.settings.method == "dann" and len(bundle.history) == 2 and len(bundle.preprocessing.genes) == 20


def test_parts_of_the_same_preprocessing_share_their_input() -> None:
    x = several().input(dataset())
    for each in (x, x[torch.arange(50)], x[10:20], x.to(torch.device("cpu"))):
        assert each.parts[0] is each.parts[1] and each.parts[0].shape == (len(each), 20)
        assert each.parts[2].shape == (len(each), 30)
    assert len(x) == 140 and torch.equal(x[10:20].leading, x.leading[10:20])


def test_the_genes_of_all_parts_are_looked_for() -> None:
    bundle, names = several(), dataset().genes
    genes = {gene for part in bundle.parts for gene in part.preprocessing.genes.tolist()}
    assert set(bundle.genes.tolist()) == genes and len(bundle.genes) == len(genes) > 20
    assert bundle.missing(names) == ()
    only = bundle.parts[2].preprocessing.genes
    lacking = sorted(genes - set(only.tolist()))
    assert sorted(bundle.missing(only)) == lacking
    with pytest.raises(DataError, match="0 of the 20 genes of the model"):
        bundle.missing(np.setdiff1d(only, bundle.preprocessing.genes))


def test_what_depends_on_other_cells_in_one_part_does_in_all() -> None:
    bundle = several()
    assert not bundle.transductive
    part = bundle.parts[2]
    scaled = replace(part.preprocessing, settings=PreprocessSettings(scaling="standard-per-batch"))
    assert replace(bundle, parts=(*bundle.parts[:2], replace(part, preprocessing=scaled))).transductive


def test_some_of_the_models_are_taken_with_their_parts() -> None:
    bundle = several()
    assert [len(part.models) for part in bundle.take([1, 3]).parts] == [1, 1]
    assert bundle.take([1, 3]).models == (bundle.models[1], bundle.models[3])
    assert bundle.take([1, 3]).history == (bundle.history[1],)
    assert bundle.take([0, 1, 2, 3]) == bundle


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"preprocessing": 2}, "preprocessing of a part is 2"),
        ({"preprocessing": -1}, "preprocessing of a part is -1"),
        ({"preprocessing": 1}, "hidden.weight of model 0 is not float32 of shape"),
        ({"models": 3}, "models is 3"),
        ({"settings": []}, "settings are not those of a model"),
    ],
)
def test_parts_that_contradict_themselves_are_refused(change: dict[str, object], told: str, tmp_path: Path) -> None:
    several().save(tmp_path / "model")
    found = document(tmp_path / "model")
    found["parts"][0] |= change
    reseal(tmp_path / "model", found)
    assert told in refused(tmp_path / "model")


@pytest.mark.parametrize("key", ["parts", "preprocessing"])
def test_a_bundle_without_parts_is_refused(key: str, copy: Path) -> None:
    reseal(copy, {**document(copy), key: []})
    assert f"{key} is not a list of something" in refused(copy)


# --- what correction needs


def test_the_reference_of_each_part_is_that_of_its_training_cells_and_is_kept(tmp_path: Path) -> None:
    bundle, cells = several(), dataset()
    replace(bundle, corrects=True).save(tmp_path / "model")
    loaded = Bundle.load(tmp_path / "model")
    assert loaded.corrects and not bundle.corrects
    x = bundle.input(cells)
    for part, kept, own in zip(bundle.parts, loaded.parts, x.parts, strict=True):
        assert part.reference is not None and kept.reference is not None
        expected = find_reference(own, torch.from_numpy(cells.labels), torch.from_numpy(cells.batches), 3)
        for one, two, three in zip(part.reference, kept.reference, expected, strict=True):
            if isinstance(one, torch.Tensor):
                assert torch.equal(one, torch.as_tensor(two))
                torch.testing.assert_close(one, torch.as_tensor(three), equal_nan=True)
            else:
                assert one == two == pytest.approx(three, rel=1e-4)


def test_types_without_training_cells_have_no_mean(tmp_path: Path) -> None:
    bundle = trained()
    reference = bundle.parts[0].reference
    assert reference is not None
    means = reference.means.index_fill(0, torch.tensor([1]), torch.nan)
    part = replace(bundle.parts[0], reference=reference._replace(means=means))
    replace(bundle, parts=(part,)).save(tmp_path / "model")
    kept = Bundle.load(tmp_path / "model").parts[0].reference
    assert kept is not None and kept.means.isnan().all(dim=1).tolist() == [False, True, False]


def spread(value: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        found = document(folder)
        found["parts"][0]["spread"] = value
        reseal(folder, found)

    return spoil


def asking_for_correction_without(folder: Path) -> None:
    spread(None)(folder)
    reseal(folder, {**document(folder), "corrects": True})


WITHOUT_REFERENCE: dict[str, tuple[Callable[[Path], object], str]] = {
    "spread a word": (spread("far"), "spread of part 0 is 'far'"),
    "spread below 0": (spread(-1), "spread of part 0 is -1"),
    "spread true": (spread(True), "spread of part 0 is True"),
    "corrects a word": (lambda folder: reseal(folder, {**document(folder), "corrects": "yes"}), "corrects is 'yes'"),
    "corrects without": (asking_for_correction_without, "corrects is True"),
}


@pytest.mark.parametrize(("spoil", "told"), WITHOUT_REFERENCE.values(), ids=WITHOUT_REFERENCE)
def test_a_reference_that_contradicts_itself_is_refused(spoil: Callable[[Path], object], told: str, copy: Path) -> None:
    spoil(copy)
    assert told in refused(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors["parts.0.means"][0, 0].fill_(float("nan")), "means or floor of part 0 are not finite"),
        (lambda tensors: tensors["parts.0.floor"][0].fill_(float("inf")), "means or floor of part 0 are not finite"),
        (lambda tensors: tensors.update({"parts.0.means": torch.zeros(3, 4)}), "means and floor of part 0 are not"),
        (lambda tensors: tensors.update({"parts.0.floor": torch.zeros(20).double()}), "means and floor of part 0 are"),
        (lambda tensors: tensors.pop("parts.0.means"), "is damaged"),
    ],
)
def test_a_damaged_reference_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object], told: str, copy: Path
) -> None:
    weights_changed(change)(copy)
    assert told in refused(copy)


# --- of before


def test_a_bundle_of_version_1_predicts_as_it_did(tmp_path: Path) -> None:
    """Written by the code of before there were parts, which also wrote down what it predicted."""
    bundle = Bundle.load(VERSION_1)
    told = json.loads((VERSION_1 / "predictions.json").read_text())
    counts = np.array(told["counts"], dtype=np.float32)
    query = from_anndata(AnnData(counts, var=pd.DataFrame(index=told["genes"])), Fields(None, None, values="counts"))
    for _ in range(2):
        outputs = bundle.all_outputs(bundle.input(query))
        for name, values in outputs._asdict().items():
            assert np.allclose(values, told[name], atol=1e-5), name
        assert len(bundle.parts) == 1 and len(bundle.models) == 2 and bundle.settings.method == "dann"
        assert bundle.batch_names == ("a", "b", "c") and len(bundle.history) == 2
        assert not bundle.corrects and bundle.parts[0].reference is None
        with pytest.raises(SettingsError, match="train it again"):
            bundle.correction(query, lambda: [query], correct=True)
        bundle.save(tmp_path / "model", overwrite=True)
        bundle = Bundle.load(tmp_path / "model")


# --- damaged, incomplete, foreign


def another_version(folder: Path) -> None:
    reseal(folder, {**document(folder), "version": 3})


def another_format(folder: Path) -> None:
    reseal(folder, {**document(folder), "format": "scvi"})


def fields_changed(fields: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        found = document(folder)
        reseal(folder, {**found, "provenance": {**found["provenance"], "fields": fields}})

    return spoil


def weights_changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        reseal(folder, document(folder))

    return spoil


def set_value(name: str, value: float) -> Callable[[Path], None]:
    return weights_changed(lambda tensors: tensors[name].view(-1)[0].fill_(value))


FIRST = "models.0.hidden.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another version": (
        another_version,
        "version 3, this scdgn reads up to version 2: install the scdgn that wrote",
    ),
    "another format": (another_format, "does not describe a bundle"),
    "fields not text": (fields_changed({"layer": 3}), "fields is {'layer': 3}"),
    "fields a list": (fields_changed(["layer"]), "is damaged"),
    "values unheard of": (fields_changed({"values": "tpm"}), "fields is {'values': 'tpm'}"),
    "no folder": (lambda folder: shutil.rmtree(folder), "is not a folder"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.touch()), "is not a folder"),
    "an empty folder": (lambda folder: [(folder / name).unlink() for name in FILES], f"holds no {DOCUMENT}"),
    "no document": (lambda folder: (folder / DOCUMENT).unlink(), f"holds no {DOCUMENT}"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} cannot be read"),
    "document emptied": (lambda folder: (folder / DOCUMENT).write_bytes(b""), f"{DOCUMENT} cannot be read"),
    "weights emptied": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "is damaged"),
    "document a list": (lambda folder: (folder / DOCUMENT).write_text("[]"), "does not describe a bundle"),
    "document nested": (lambda folder: (folder / DOCUMENT).write_text("[" * 100_000), f"{DOCUMENT} cannot be read"),
    "document binary": (lambda folder: (folder / DOCUMENT).write_bytes(b"\xff\xfe\x00"), f"{DOCUMENT} cannot be read"),
    "NaN in the weights": (set_value(FIRST, float("nan")), "hidden.weight of model 0 is not finite"),
    "infinite weights": (set_value("models.1.label.bias", float("inf")), "label.bias of model 1 is not finite"),
    "NaN in the means": (set_value("preprocessing.0.mean", float("nan")), "statistics of the genes are not finite"),
    "a deviation of 0": (set_value("preprocessing.0.std", 0), "standard deviation of a gene is not above 0"),
    "wrong shape": (
        weights_changed(lambda tensors: tensors.update({FIRST: torch.zeros(3, 4)})),
        "hidden.weight of model 0 is not float32 of shape",
    ),
    "wrong type": (
        weights_changed(lambda tensors: tensors.update({FIRST: tensors[FIRST].double()})),
        "hidden.weight of model 0 is not float32",
    ),
    "a weight missing": (weights_changed(lambda tensors: tensors.pop(FIRST)), "is damaged"),
    "the means missing": (weights_changed(lambda tensors: tensors.pop("preprocessing.0.mean")), "is damaged"),
    "means of other genes": (
        weights_changed(lambda tensors: tensors.update({"preprocessing.0.mean": torch.zeros(3)})),
        "contradicts itself",
    ),
}


@pytest.mark.parametrize(("spoil", "told"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_bundles_are_refused(spoil: Callable[[Path], object], told: str, copy: Path) -> None:
    spoil(copy)
    assert told in refused(copy)


@pytest.mark.parametrize("name", FILES)
def test_truncated_anywhere(name: str, copy: Path) -> None:
    content = (copy / name).read_bytes()
    for length in {0, 1, 7, 8, 9, len(content) // 3, len(content) // 2, len(content) - 2, len(content) - 1}:
        (copy / name).write_bytes(content[:length])
        refused(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere(name: str, saved: Path, tmp_path: Path) -> None:
    content = (saved / name).read_bytes()
    expected = Bundle.load(saved)
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 120, replace=False):
        folder = tmp_path / str(place)
        shutil.copytree(saved, folder)
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(flipped)
        try:
            loaded = Bundle.load(folder)
        except BundleError as error:
            assert "\n" not in str(error)
        else:  # only where the bit said nothing, as in the white space of JSON
            assert name == DOCUMENT
            assert document(folder) == document(saved)
            assert loaded.settings == expected.settings


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_document_that_was_tampered_with_is_refused_or_harmless(data: st.DataObject, copy: Path, saved: Path) -> None:
    """Any part of the document replaced by any JSON, sealed with a checksum that fits."""
    found = document(saved)
    part: Any = found
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [
            value for value in (part.values() if isinstance(part, dict) else part) if isinstance(value, dict | list)
        ]
        if not any(inner):
            break
        part = data.draw(st.sampled_from([value for value in inner if value]))
    keys = sorted(part) if isinstance(part, dict) else list(range(len(part)))
    key = data.draw(st.sampled_from(keys))
    if data.draw(st.booleans()):
        part[key] = data.draw(JSON)
    else:
        del part[key]
    reseal(copy, found)
    try:
        loaded = Bundle.load(copy)
    except BundleError:
        return
    x = loaded.input(dataset())
    assert loaded.probabilities(x).shape == (140, len(loaded.cell_types))
    model = scdgn.SCDGN.load(copy)
    assert len(model.predict(tiny())) == 140
    assert all(len(table) >= 0 for table in model.history.values())


# --- safe to load


FOLDERS = [Path(scdgn.__file__).parent / name for name in (".", "core", "core/pack", "cells", "model", "commands")]


@pytest.mark.parametrize("path", [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))], ids=str)
def test_nothing_that_is_read_can_run(path: Path) -> None:
    forbidden_modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy"}
    forbidden_calls = {"eval", "exec", "compile", "__import__"}
    forbidden_attributes = {("torch", "load"), ("torch", "jit"), ("torch", "package"), ("pd", "read_pickle")}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & forbidden_modules
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in forbidden_modules
            assert not {(node.module, alias.name) for alias in node.names} & forbidden_attributes
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in forbidden_calls
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in forbidden_attributes
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False
