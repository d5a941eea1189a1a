"""The exported model: it predicts as the bundle does, elsewhere too; and its place in the registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.normalize import log_normalized
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Settings
from scdgn.core.rejection import Calibration
from scdgn.errors import BundleError, DataError, OutputError
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from scdgn.search.folder import StudyFolder
from scdgn.search.study.documents import to_document
from scdgn.search.study.settings import Source, StudySettings
from scdgn.search.summary import ExportedScores, ModelScores, Registration
from scdgn.search.tracking.contents import KIND, STUDY_ID
from scdgn.search.tracking.description import describe
from scdgn.search.tracking.registry import ExportError, export_study, register
from scdgn.search.tracking.served import save_pyfunc
from scdgn.search.tracking.store import configure
from tests import find_parent_run
from tests.faults import SETTINGS, tiny
from tests.summaries import summary_with
from tests.test_folder import written

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

# Said by MLflow's tables when the store is first opened.

TYPES = ["B", "NK", "T"]
CELLS = 7


def trained(dataset: Dataset, seeds: int = 2, **preprocess: Any) -> Bundle:
    return fit(
        dataset,
        np.arange(len(dataset)),
        Settings.from_mapping({"method": "nn", **SETTINGS}),
        PreprocessSettings(**{"n_top_genes": 20, **preprocess}),
        range(seeds),
    )


def frame(dataset: Dataset, cells: int = CELLS) -> pd.DataFrame:
    """The first cells as a user would give them."""
    x = dataset.x[:cells]
    values = x if isinstance(x, np.ndarray) else x.toarray()
    return pd.DataFrame(values, columns=dataset.genes.tolist(), index=dataset.cells[:cells].tolist())


def probabilities(answer: pd.DataFrame) -> NDArray[np.float64]:
    return answer[[f"probability: {name}" for name in TYPES]].to_numpy()


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return from_anndata(tiny(), Fields("celltype", "tech"))


@pytest.fixture(scope="module")
def bundle(dataset: Dataset) -> Bundle:
    return trained(dataset)


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle and the model made of it, not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    bundle.save(folder / "bundle")
    save_pyfunc(folder / "bundle", folder / "model")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[PyFuncModel]:
    before = list(sys.path)
    yield mlflow.pyfunc.load_model(str(folder / "model"))
    sys.path[:] = before  # MLflow puts the code of what it loads in front


def expected(bundle: Bundle, dataset: Dataset, cells: int = CELLS) -> NDArray[np.float32]:
    return bundle.probabilities(bundle.input(dataset.take(np.arange(cells))))


# --- what it gives


def test_it_predicts_as_the_bundle_does(model: PyFuncModel, bundle: Bundle, dataset: Dataset) -> None:
    answer = model.predict(frame(dataset))
    wanted = expected(bundle, dataset)
    assert np.array_equal(probabilities(answer), wanted)
    assert answer["label"].tolist() == [TYPES[code] for code in wanted.argmax(axis=1)]
    assert np.array_equal(answer["confidence"], wanted.max(axis=1))
    assert answer.columns.tolist() == ["label", "confidence", *(f"probability: {name}" for name in TYPES)]
    assert answer.index.tolist() == dataset.cells[:CELLS].tolist()


def test_a_model_with_a_threshold_says_which_cells_are_unknown(
    bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    strange = bundle.all_outputs(bundle.input(dataset))[2][:CELLS]
    threshold = float(np.sort(strange)[CELLS // 2])
    replace(bundle, calibration=Calibration(threshold=threshold)).save(tmp_path / "bundle")
    save_pyfunc(tmp_path / "bundle", tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    names = ["label", "confidence", "unknown", *(f"probability: {name}" for name in TYPES)]
    assert model.metadata.get_output_schema().input_names() == names
    status, answer = invoke(model, json.dumps({"dataframe_split": frame(dataset).to_dict(orient="split")}))
    assert status == 200
    assert [row["unknown"] for row in answer] == (strange > threshold).tolist()
    assert {row["unknown"] for row in answer} == {True, False} and list(answer[0]) == names


def test_columns_go_by_name_and_foreign_ones_are_not_looked_at(model: PyFuncModel, dataset: Dataset) -> None:
    cells = frame(dataset)
    shuffled = cells[cells.columns[::-1]].assign(MALAT1=1e6, comment="fine")
    assert np.array_equal(probabilities(model.predict(shuffled)), probabilities(model.predict(cells)))


def test_genes_left_out_are_not_measured(model: PyFuncModel, bundle: Bundle, dataset: Dataset) -> None:
    kept = np.setdiff1d(np.arange(40), [list(dataset.genes).index(name) for name in bundle.preprocessing.genes[:9]])
    answer = model.predict(frame(dataset)[dataset.genes[kept].tolist()])
    fewer = replace(dataset, x=dataset.x[:, kept], genes=dataset.genes[kept])
    assert np.array_equal(probabilities(answer), expected(bundle, fewer))
    assert not np.array_equal(probabilities(answer), expected(bundle, dataset))


def test_genes_that_were_not_selected_count_for_the_total(model: PyFuncModel, bundle: Bundle, dataset: Dataset) -> None:
    selected = frame(dataset)[bundle.preprocessing.genes.tolist()]
    assert not np.allclose(probabilities(model.predict(selected)), expected(bundle, dataset))


def test_log_normalised_models_take_log_normalised_values(dataset: Dataset, tmp_path: Path) -> None:
    logs = log_normalized(dataset)
    bundle = trained(logs, scaling="standard")
    bundle.save(tmp_path / "bundle")
    save_pyfunc(tmp_path / "bundle", tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert model.metadata.get_input_schema().input_names() == bundle.preprocessing.genes.tolist()
    assert np.array_equal(probabilities(model.predict(frame(logs))), expected(bundle, logs))


def test_the_genes_of_all_parts_are_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    logs = log_normalized(dataset)
    one, two = trained(logs, n_top_genes=8), trained(logs, n_top_genes=12, scaling="standard")
    bundle = replace(one, parts=one.parts + two.parts)
    bundle.save(tmp_path / "bundle")
    save_pyfunc(tmp_path / "bundle", tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert model.metadata.get_input_schema().input_names() == bundle.genes.tolist()
    assert np.array_equal(probabilities(model.predict(frame(logs))), expected(bundle, logs))
    assert model.input_example.columns.tolist() == bundle.genes.tolist()


@pytest.mark.parametrize("kind", ["float64", "int32", "uint16"])
def test_whole_numbers_are_values_like_others(kind: str, model: PyFuncModel, bundle: Bundle, dataset: Dataset) -> None:
    assert np.array_equal(probabilities(model.predict(frame(dataset).astype(kind))), expected(bundle, dataset))


def test_one_cell_and_none(model: PyFuncModel, bundle: Bundle, dataset: Dataset) -> None:
    assert np.allclose(probabilities(model.predict(frame(dataset, 1))), expected(bundle, dataset, 1), atol=1e-6)
    assert model.predict(frame(dataset, 0)).shape == (0, 2 + len(TYPES))


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_values_that_are_none(value: float, model: PyFuncModel, dataset: Dataset) -> None:
    cells = frame(dataset)
    cells.iloc[2, 0] = value
    with pytest.raises(MlflowException) as caught:
        model.predict(cells)
    assert f"the first that of {dataset.genes[0]} in row 2: give 0 where nothing was found" in str(caught.value)
    assert caught.value.get_http_status_code() == 400


def test_too_few_genes(model: PyFuncModel, bundle: Bundle, dataset: Dataset) -> None:
    few = bundle.preprocessing.genes[:4].tolist()
    with pytest.raises(MlflowException, match="4 of the 20 genes of the model are in the data, 5 are needed"):
        model.predict(frame(dataset)[few])
    with pytest.raises(MlflowException, match="0 of the 20 genes"):
        model.predict(pd.DataFrame({"unheard of": [1.0, 2.0]}))


# --- served


def invoke(model: PyFuncModel, content: str, mime: str = "application/json") -> tuple[int, Any]:
    """What `mlflow models serve` makes of a request, without the socket."""
    from mlflow.pyfunc import scoring_server

    answer = scoring_server.invocations(content, mime, model, model.metadata.get_input_schema())
    return answer.status, json.loads(answer.response)["predictions"]


@pytest.mark.parametrize("orient", ["records", "split"])
def test_json_of_whole_numbers(orient: Any, model: PyFuncModel, bundle: Bundle, dataset: Dataset) -> None:
    cells = frame(dataset).astype(int)  # 64 bits, as JSON is read
    content = {f"dataframe_{orient}": json.loads(cells.to_json(orient=orient))}
    status, answer = invoke(model, json.dumps(content))
    assert status == 200
    assert np.allclose(probabilities(pd.DataFrame(answer)), expected(bundle, dataset), atol=1e-7)
    assert answer[0].keys() == {"label", "confidence", *(f"probability: {name}" for name in TYPES)}


def test_columns_of_values(model: PyFuncModel, bundle: Bundle, dataset: Dataset) -> None:
    cells = frame(dataset).reset_index(drop=True)
    status, answer = invoke(model, json.dumps({"inputs": cells.to_dict(orient="list")}))
    assert status == 200 and np.allclose(probabilities(pd.DataFrame(answer)), expected(bundle, dataset), atol=1e-7)
    status, answer = invoke(model, cells.astype(int).to_csv(index=False), "text/csv")
    assert status == 200 and np.allclose(probabilities(pd.DataFrame(answer)), expected(bundle, dataset), atol=1e-7)


def test_the_example_of_the_model_is_a_request_that_works(model: PyFuncModel, folder: Path, bundle: Bundle) -> None:
    status, answer = invoke(model, (folder / "model" / "serving_input_example.json").read_text())
    assert status == 200 and len(answer) == 2 and {row["label"] for row in answer} <= set(TYPES)
    example = model.input_example
    assert example.columns.tolist() == bundle.preprocessing.genes.tolist()
    assert (example.to_numpy() == example.to_numpy().round()).all() and example.to_numpy().any()


def test_the_signature_asks_for_genes_and_needs_none(model: PyFuncModel, dataset: Dataset) -> None:
    asked = model.metadata.get_input_schema()
    assert asked.input_names() == dataset.genes.tolist() and not asked.required_input_names()
    given = model.metadata.get_output_schema()
    assert given.input_names() == ["label", "confidence", *(f"probability: {name}" for name in TYPES)]


# --- elsewhere

ELSEWHERE = """
import json, sys
sys.path.append(sys.argv[1])
try:
    import scdgn
    sys.exit("scdgn can be imported before the model is loaded")
except ModuleNotFoundError:
    pass
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[2])
import pandas as pd
answer = model.predict(pd.read_json(sys.argv[3], orient="split").astype(float))
import scdgn
print(json.dumps({
    "answer": answer.to_dict(orient="list"),
    "code": scdgn.__file__,
    "imported": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


def test_it_predicts_where_the_project_is_not_installed(
    folder: Path, bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    frame(dataset).to_json(tmp_path / "cells.json", orient="split")
    # -I and -S: no working folder, no .pth file, and so no editable installation of this project.
    words = [sysconfig.get_paths()["purelib"], str(folder / "model"), str(tmp_path / "cells.json")]
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "ignore", "-c", ELSEWHERE, *words], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert np.allclose(probabilities(pd.DataFrame(told["answer"])), expected(bundle, dataset), atol=1e-7)
    assert Path(told["code"]).is_relative_to(folder / "model")
    assert {"search", "anndata", "scanpy", "h5py", "optuna", "ray"}.isdisjoint(told["imported"])


def test_the_model_is_code_json_and_safetensors(folder: Path, tmp_path: Path) -> None:
    save_pyfunc(folder / "bundle", tmp_path / "model")  # a new one: running one leaves .pyc files beside its code
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {"", ".py", ".typed", ".json", ".yaml", ".txt", ".safetensors"}
    assert [path.name for path in files if path.suffix == ""] == ["MLmodel"]
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80"], "begins as a pickle does"
    assert "python_model.pkl" not in (tmp_path / "model" / "MLmodel").read_text()


def test_requirements_are_exact_and_what_prediction_imports(folder: Path) -> None:
    lines = (folder / "model" / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in lines] == ["mlflow", "numpy", "pandas", "safetensors", "scipy", "torch"]
    assert all(line.partition("==")[2] and "+" not in line for line in lines)


def test_nothing_of_the_folder_it_is_made_in_gets_into_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "1"\n')
    (tmp_path / "uv.lock").write_text("version = 1\n")
    monkeypatch.chdir(tmp_path)
    save_pyfunc(folder / "bundle", tmp_path / "model")
    assert "MLFLOW_UV_AUTO_DETECT" not in os.environ
    assert not {"uv.lock", "pyproject.toml"} & {path.name for path in (tmp_path / "model").rglob("*")}


# --- registered


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of all studies; their MLflow store appears in it."""
    with patch.dict(os.environ):  # which tracking configures
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            del os.environ[name]
        yield tmp_path_factory.mktemp("studies")


@pytest.fixture
def client(store: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store}/mlflow.db")


def summary(name: str, score: float, **changes: Any) -> Any:
    """Of a study that is done, as the pipeline writes it."""
    scores = {"mean": 0.81, "std": 0.02, "picked": 0.82, "ensemble": 0.83, "by_seed": [0.79, 0.83]}
    validation = {"cells": 28, "unscored_cells": 0, "macro_f1": scores, "accuracy": scores}
    tested = {key: {**scores, "best_oracle": 0.99} for key in ("macro_f1", "accuracy")}
    real: dict[str, Any] = {
        "study": name,
        "id": f"id of {name}",
        "metric": "macro_f1",
        "data": {
            "training_cells": 100,
            "training_domains": ["a", "b"],
            "test_batches": ["c"],
            "fingerprint": "f" * 64,
        },
        "folds": [{"name": "a"}, {"name": "b"}],
        "unscored_types": [],
        "winner": {
            "number": 4,
            "score": score,
            "note": "",
            "settings": {"margin": 1.0},
            "folds": {"a": score, "b": score},
        },
        "final": {"seeds": [100, 101], "picked_seed": 101, "validation": validation, "test": {"cells": 40, **tested}},
        "model": {"score": None, "corrects": False, "parts": [], "test": None},
    }
    return replace(summary_with(**real), **changes)


def finished(store: Path, bundle: Bundle, name: str, score: float, tracked: bool = True, **changes: Any) -> StudyFolder:
    """A study that is done, and has a run in MLflow."""
    settings = StudySettings(name, Source(data=Path("cells.h5ad")), studies=store)
    folder = StudyFolder(settings.folder)
    made = {
        **written(name)["record"],
        "id": f"id of {name}",
        "test_batches": ["c"],
        "fingerprint": {"training": "f" * 64, "test": "e" * 64, "unlabeled": ""},
    }
    folder.write_settings({**to_document(settings), "record": made})
    bundle.save(folder.model, overwrite=True)
    folder.write_summary(summary(name, score, **changes))
    if tracked and find_parent_run(folder) is None:
        client = MlflowClient(configure(store).uri)
        experiment = client.get_experiment_by_name("scdgn").experiment_id
        client.create_run(experiment, tags={STUDY_ID: f"id of {name}", KIND: "study"})
    return folder


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}


def test_the_first_version_is_the_champion(store: Path, client: MlflowClient, bundle: Bundle, dataset: Dataset) -> None:
    folder = finished(store, bundle, "first/dann", 0.5)
    registered = register(folder, "first/dann", promote=False)
    assert registered == Registration(
        name="first-dann",  # MLflow has no slash in names
        version="1",
        alias="champion",
        uri="models:/first-dann/1",
        reason="there was no champion",
    )
    version = client.get_model_version_by_alias("first-dann", "champion")
    assert version.status == "READY"
    keys = ("scdgn.study", "scdgn.study_id", "selection", "metric", "transductive")
    assert {key: version.tags[key] for key in keys} == {
        "scdgn.study": "first/dann",
        "scdgn.study_id": "id of first/dann",
        "selection": "leave-one-domain-out",
        "metric": "macro_f1",
        "transductive": "false",
    }
    assert float(version.tags["selection_score"]) == 0.5 and version.tags["data"] == "f" * 64
    run = client.get_run(version.run_id)
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert logged.status == "READY" and logged.source_run_id == version.run_id and logged.experiment_id == "1"
    assert logged.params == {"margin": "1.0"}
    assert mlflow.active_run() is None
    before = list(sys.path)
    model = mlflow.pyfunc.load_model("models:/first-dann@champion")
    sys.path[:] = before
    assert np.array_equal(probabilities(model.predict(frame(dataset))), expected(bundle, dataset))
    assert model.metadata.run_id == version.run_id and model.metadata.model_id == logged.model_id


def test_the_page_of_the_logged_model_says_what_it_is_and_scores(
    store: Path, client: MlflowClient, bundle: Bundle
) -> None:
    plain = ModelScores(macro_f1=0.7, accuracy=0.8, balanced_accuracy=0.9, calibration_error=0.1)
    corrected = ModelScores(macro_f1=0.6, accuracy=0.5, balanced_accuracy=0.4, calibration_error=0.3)
    tested = ExportedScores(plain=plain, corrected=corrected)
    exported = replace(summary("", 0).model, score=0.55, corrects=True, test=tested)
    folder = finished(store, bundle, "paged", 0.5, model=exported)
    run_id = find_parent_run(folder)
    assert run_id is not None
    client.log_metric(run_id, "exported_score", 0.55, timestamp=1000, step=7)
    register(folder, "paged", promote=False)
    (model,) = client.search_logged_models(["1"], "tags.`scdgn.study` = 'paged'")
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "paged", "version": "1"}]
    assert model.tags["mlflow.note.content"] == client.get_model_version("paged", "1").description
    assert model.tags["mlflow.source.name"] == "scdgn search"
    assert {(one.key, one.value, one.dataset_name, one.dataset_digest) for one in model.metrics or ()} == {
        ("exported_score", 0.55, "cells", "f" * 16),
        ("test/macro_f1_exported", 0.6, "cells, c", "e" * 16),
        ("test/accuracy_exported", 0.5, "cells, c", "e" * 16),
        ("test/balanced_accuracy_exported", 0.4, "cells, c", "e" * 16),
        ("test/calibration_error_exported", 0.3, "cells, c", "e" * 16),
    }
    (point,) = client.get_metric_history(run_id, "exported_score")  # the one that was there
    assert (point.timestamp, point.step) == (1000, 7)
    # What a process that was killed between two steps left out is made up for, once.
    client.delete_logged_model_tag(model.model_id, "mlflow.modelVersions")
    for _ in range(2):
        register(folder, "paged", promote=False)
        (model,) = client.search_logged_models(["1"], "tags.`scdgn.study` = 'paged'")
        assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "paged", "version": "1"}]
        assert len(model.metrics or ()) == 5
    assert len(client.get_metric_history(run_id, "test/macro_f1_exported")) == 1


def test_the_same_model_is_registered_once(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    folder = finished(store, bundle, "once", 0.5)
    registered = register(folder, "once", promote=False)
    assert register(folder, "once", promote=False) == registered
    assert len(client.search_model_versions("name='once'")) == 1
    assert len(client.search_logged_models(["1"], "tags.`scdgn.study` = 'once'")) == 1
    # Another bundle of the same study is another version.
    bundle.take([0]).save(folder.model, True)
    again = register(folder, "once", promote=False)
    assert again.version == "2" and again.alias == "candidate"
    assert (
        again.reason
        == "leave-one-domain-out macro_f1 0.5000 is not above 0.5000 of the champion, version 1 (or --promote it)"
    )


def test_a_better_score_on_the_same_cells_makes_the_champion(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    first = finished(store, bundle, "better/1", 0.5)
    register(first, "better", promote=False)
    worse = register(finished(store, bundle, "better/2", 0.4999), "better", promote=False)
    assert worse.alias == "candidate" and "0.4999 is not above 0.5000 of the champion, version 1" in worse.reason
    best = register(finished(store, bundle, "better/3", 0.6), "better", promote=False)
    assert best.alias == "champion" and "0.6000 is above 0.5000 of version 1" in best.reason
    assert aliases(client, "better") == {"champion": "3", "candidate": "2"}
    superseded = register(first, "better", promote=False)
    assert superseded.version == "1" and superseded.alias is None
    assert superseded.reason == "registered before, and another version has its alias now"
    assert aliases(client, "better") == {"champion": "3", "candidate": "2"}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("data", {"data": replace(summary("", 0).data, fingerprint="e" * 64)}),
        ("metric", {"metric": "accuracy"}),
        ("selection", {"selection": "training-domain"}),
        ("transductive", {"transductive": True}),
    ],
)
def test_what_cannot_be_compared_is_a_candidate(
    key: str, changes: dict[str, Any], store: Path, client: MlflowClient, bundle: Bundle
) -> None:
    name = f"compared {key}"
    register(finished(store, bundle, f"{name}/1", 0.5), name, promote=False)
    other = register(finished(store, bundle, f"{name}/2", 0.9, **changes), name, promote=False)
    assert other.alias == "candidate"
    assert other.reason == f"not comparable with the champion, version 1, by its score: {key} differs"


def test_promotion_by_hand(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    register(finished(store, bundle, "hand/1", 0.5), "hand", promote=False)
    folder = finished(store, bundle, "hand/2", 0.4)
    register(folder, "hand", promote=False)
    promoted = register(folder, "hand", promote=True)
    assert promoted.alias == "champion" and promoted.version == "2" and promoted.reason == "promoted by hand"
    assert aliases(client, "hand") == {"champion": "2"}
    assert register(folder, "hand", promote=False) == promoted


def test_a_champion_that_was_deleted_or_came_otherwise(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    folder = finished(store, bundle, "gone", 0.5)
    register(folder, "gone", promote=False)
    client.delete_model_version("gone", "1")
    again = register(folder, "gone", promote=False)
    assert again.version == "2" and again.alias == "champion"
    foreign = client.create_model_version("gone", str(store / "elsewhere"))
    client.set_registered_model_alias("gone", "champion", foreign.version)
    other = register(finished(store, bundle, "gone/2", 0.9), "gone", promote=False)
    assert other.alias == "candidate" and "data and metric and selection and transductive differ" in other.reason


def test_a_registration_that_was_cut_off_is_finished(
    store: Path, client: MlflowClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(store, bundle, "cut", 0.5)
    with monkeypatch.context() as cut:
        cut.setattr(MlflowClient, "set_registered_model_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            register(folder, "cut", promote=False)
    assert aliases(client, "cut") == {}
    assert register(folder, "cut", promote=False).alias == "champion"
    assert len(client.search_model_versions("name='cut'")) == 1

    with monkeypatch.context() as cut:
        cut.setattr(MlflowClient, "log_model_artifacts", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
        with pytest.raises(ExportError, match=r"disk full.*`scdgn export cut/2`"):
            register(finished(store, bundle, "cut/2", 0.6), "cut", promote=False)
    (failed,) = client.search_logged_models(["1"], "tags.`scdgn.study` = 'cut/2'")
    assert failed.status == "FAILED" and len(client.search_model_versions("name='cut'")) == 1


def test_a_run_of_the_user_is_left_alone(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    folder = finished(store, bundle, "beside", 0.5)
    with mlflow.start_run(experiment_id="0") as mine:
        register(folder, "beside", promote=False)
        active = mlflow.active_run()
        assert active is not None and active.info.run_id == mine.info.run_id
    assert client.get_model_version("beside", "1").run_id != mine.info.run_id
    assert (
        client.get_run(mine.info.run_id).outputs is None or not client.get_run(mine.info.run_id).outputs.model_outputs
    )


# --- said of it


def test_the_description_tells_scores_and_marks_the_oracle(bundle: Bundle) -> None:
    told = describe(summary("islets", 0.61), bundle)
    assert "leave-one-domain-out, macro_f1 0.610 of trial 4" in told and "No test label took part" in told
    assert "100 training cells of a, b" in told and "held out as a test: c" in told and "Not transductive" in told
    assert "| test, 40 | mean ± standard deviation | 0.810 ± 0.020 | 0.810 ± 0.020 |" in told
    assert [line for line in told.splitlines() if "0.99" in line] == [
        "| test, 40 | best: an **oracle**, chosen by the test labels | 0.990 | 0.990 |"
    ]
    transductive = describe(summary("islets", 0.61, transductive=True, metric="accuracy"), bundle)
    assert "**Transductive**" in transductive and "| accuracy | macro_f1 |" in transductive


def test_without_test_cells_nothing_is_said_of_any(bundle: Bundle) -> None:
    tested = summary("islets", 0.61)
    untested = replace(tested, final=replace(tested.final, test=None), data=replace(tested.data, test_batches=()))
    told = describe(untested, bundle)
    assert "| test" not in told and "oracle" not in told and "held out as a test" not in told


# --- refused


def test_a_study_that_is_not_in_mlflow(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    folder = finished(store, bundle, "untracked", 0.5, tracked=False)
    with pytest.raises(ExportError, match=r"no run of the study 'untracked'.*`scdgn sync untracked`"):
        register(folder, "untracked", promote=False)


def test_what_was_chosen_by_test_labels_is_never_registered(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    folder = finished(store, bundle, "oracle", 0.5)
    folder.write_summary(summary_with(protocol="seed-best-of-10", study="oracle"))
    with pytest.raises(ExportError, match="chosen by the test labels"):
        register(folder, "oracle", promote=True)
    assert not client.search_registered_models("name='oracle'")


@pytest.mark.parametrize("uri", ["sqlite:////dev/null/mlflow.db", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_reached(uri: str, store: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(store, bundle, "unreached", 0.5, tracked=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ExportError, match="MLFLOW_TRACKING_URI") as caught:
        register(folder, "unreached", promote=False)
    assert "\n" not in str(caught.value) and "`scdgn export unreached`" in str(caught.value)


# --- scdgn export


def test_export_copies_the_bundle_and_registers_it_once(
    store: Path, client: MlflowClient, bundle: Bundle, tmp_path: Path
) -> None:
    folder = finished(store, bundle, "handed", 0.5)
    registered = export_study(store, "handed", tmp_path / "model")
    assert Bundle.load(tmp_path / "model").provenance == bundle.provenance
    assert registered.version == "1" and folder.read_summary().registered == registered
    with pytest.raises(OutputError, match="--overwrite"):
        export_study(store, "handed", tmp_path / "model")
    assert export_study(store, "handed", tmp_path / "model", overwrite=True) == registered
    assert export_study(store, "handed", promote=True) == registered


def test_export_of_several_takes_the_best_by_selection(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    finished(store, bundle, "several/nn", 0.4)
    finished(store, bundle, "several/dann", 0.6)
    StudyFolder(store / "several" / "scdgn").write_settings(written("several/scdgn"))  # not done yet
    registered = export_study(store, "several")
    assert registered.name == "several"
    assert client.get_model_version("several", "1").tags["scdgn.study"] == "several/dann"
    assert export_study(store, "several/dann") == registered
    finished(store, bundle, "several/other", 0.9, data=replace(summary("", 0).data, fingerprint="e" * 64))
    with pytest.raises(ExportError, match="different training cells: name one of several/dann, several/nn"):
        export_study(store, "several")


def test_export_of_what_is_not_there(store: Path, client: MlflowClient, bundle: Bundle) -> None:
    folder = finished(store, bundle, "half", 0.5)
    with pytest.raises(DataError, match=r"there is no study 'halff'.*did you mean half"):
        export_study(store, "halff")
    folder.summary.unlink()
    with pytest.raises(ExportError, match="'half' has no model to export: finish it with `scdgn search`"):
        export_study(store, "half")
    with pytest.raises(ExportError, match="has no model yet"):
        register(folder, "half", promote=False)
    (finished(store, bundle, "half", 0.5).model / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="damaged"):
        register(folder, "half", promote=False)
