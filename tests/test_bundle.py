"""Bundles: what is saved is what is loaded, and what is damaged is refused in one line."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import scdgn
from scdgn.bundle import DOCUMENT, FILES, WEIGHTS, Bundle
from scdgn.config import Method, Settings
from scdgn.data import Dataset, Fields, from_anndata
from scdgn.errors import BundleError, OutputError
from scdgn.fitting import fit
from scdgn.preprocess import PreprocessSettings
from tests.faults import SETTINGS, tiny, tree

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
    assert torch.equal(loaded.input(dataset()), x)
    assert np.array_equal(loaded.probabilities(x), bundle.probabilities(x))
    assert np.array_equal(loaded.latent(x), bundle.latent(x))
    for name in ("settings", "cell_types", "batch_names", "provenance", "history"):
        assert getattr(loaded, name) == getattr(bundle, name), name
    assert len(loaded.models) == seeds
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(FILES)


def test_a_bundle_written_before_genes_could_be_markers_predicts_as_it_did(copy: Path) -> None:
    expected = Bundle.load(copy)
    found = document(copy)
    del found["preprocessing"]["settings"]["gene_selection"], found["preprocessing"]["settings"]["markers_per_type"]
    reseal(copy, found)
    loaded = Bundle.load(copy)
    assert loaded.preprocessing.settings == expected.preprocessing.settings
    x = expected.input(dataset())
    assert torch.equal(loaded.input(dataset()), x)
    assert np.array_equal(loaded.probabilities(x), expected.probabilities(x))


def test_a_bundle_saved_again_is_the_same_to_the_byte(saved: Path, tmp_path: Path) -> None:
    Bundle.load(saved).save(tmp_path / "again")
    assert tree(tmp_path / "again") == tree(saved)


def test_an_ensemble_averages_probabilities_and_keeps_the_first_latent(saved: Path) -> None:
    bundle = Bundle.load(saved)
    x = bundle.input(dataset())
    each = [replace(bundle, models=(model,)) for model in bundle.models]
    assert not np.allclose(each[0].probabilities(x), each[1].probabilities(x))
    assert np.allclose(bundle.probabilities(x), np.mean([one.probabilities(x) for one in each], axis=0), atol=1e-7)
    assert np.array_equal(bundle.latent(x), each[0].latent(x))


def test_the_document_is_plain_json_and_tells_where_the_model_comes_from(saved: Path) -> None:
    found = document(saved)
    assert found["format"] == "scdgn bundle" and found["models"] == 2
    assert found["provenance"]["scdgn"] == scdgn.__version__
    assert found["provenance"]["data"] == dataset().fingerprint()
    assert found["provenance"]["seeds"] == [0, 1]
    assert found["provenance"]["training_cells"] == 140
    assert found["cell_types"] == ["B", "NK", "T"] and found["batch_names"] == ["a", "b", "c"]
    assert len(found["preprocessing"]["genes"]) == 20 and len(found["preprocessing"]["panel"]) == 40
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


# --- damaged, incomplete, foreign


def another_version(folder: Path) -> None:
    reseal(folder, {**document(folder), "version": 2})


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
    "another version": (another_version, "version 2, this scdgn reads version 1: install the scdgn that wrote it"),
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
    "NaN in the means": (set_value("preprocessing.mean", float("nan")), "statistics of the genes are not finite"),
    "a deviation of 0": (set_value("preprocessing.std", 0), "standard deviation of a gene is not above 0"),
    "wrong shape": (
        weights_changed(lambda tensors: tensors.update({FIRST: torch.zeros(3, 4)})),
        "hidden.weight of model 0 is not float32 of shape",
    ),
    "wrong type": (
        weights_changed(lambda tensors: tensors.update({FIRST: tensors[FIRST].double()})),
        "hidden.weight of model 0 is not float32",
    ),
    "a weight missing": (weights_changed(lambda tensors: tensors.pop(FIRST)), "is damaged"),
    "the means missing": (weights_changed(lambda tensors: tensors.pop("preprocessing.mean")), "is damaged"),
    "means of other genes": (
        weights_changed(lambda tensors: tensors.update({"preprocessing.mean": torch.zeros(3)})),
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


@pytest.mark.parametrize("path", sorted(Path(scdgn.__file__).parent.glob("*.py")), ids=lambda path: path.name)
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
