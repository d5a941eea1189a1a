"""Random data and random settings: either every cell is predicted, in finite numbers, or an error says what to mend.

Nothing else may come out: no other exception, and no warning (which these tests turn into an error).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scdgn import SCDGN
from scdgn.cells.settings import GeneSelection, PreprocessSettings, Scaling
from scdgn.core.config import _RANGES, Method, Settings, kinds_of
from scdgn.errors import ScdgnError
from tests.faults import tally, tiny

Draw = Callable[[st.SearchStrategy[Any]], Any]
Array = NDArray[np.float64]

_SELDOM = st.integers(0, 7).map(lambda number: number == 0)

SMALL: dict[str, object] = {"hidden": 5, "latent": 3, "domain_code": 3, "epochs": 2, "batch_size": 16}

# Values by (generator, cells, genes).
VALUES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = {
    "counts": lambda draws, shape: draws.poisson(1.5, shape).astype(float),
    "few counts": lambda draws, shape: draws.poisson(0.05, shape).astype(float),
    "many counts": lambda draws, shape: draws.poisson(1e5, shape).astype(float),
    "fractions": lambda draws, shape: draws.gamma(0.5, 3.0, shape),
    "logarithms": lambda draws, shape: np.log1p(draws.poisson(1.5, shape) * 7.3),
    "nothing": lambda draws, shape: np.zeros(shape),
    "all the same": lambda draws, shape: np.ones(shape),
    "scaled": lambda draws, shape: draws.normal(size=shape),
    "missing": lambda draws, shape: np.where(draws.random(shape) < 0.1, np.nan, draws.poisson(1.5, shape)),
    "infinite": lambda draws, shape: np.where(draws.random(shape) < 0.1, np.inf, draws.poisson(1.5, shape)),
    "huge": lambda draws, shape: draws.random(shape) * 1e300,
    "large": lambda draws, shape: draws.random(shape) * 1e30,
    "one huge": lambda draws, shape: np.where(draws.random(shape) < 0.02, 3e38, draws.poisson(1.5, shape)),
    "minute": lambda draws, shape: draws.random(shape) * 1e-300,
}
NUMBERS = ("float64", "float32", "float16", "int64", "int32", "int8", "uint16", "bool")
LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "dense": np.ascontiguousarray,
    "by columns": np.asfortranarray,
    "CSR": sp.csr_matrix,
    "CSC": sp.csc_matrix,
    "sparse array": sp.csr_array,
    "unsorted CSR": lambda x: sp.csr_matrix(x)[:, ::-1][:, ::-1],
    "zeros stored": lambda x: sp.csr_matrix((x.ravel(), np.tile(np.arange(x.shape[1]), x.shape[0]),
                                             np.arange(0, x.size + 1, x.shape[1])), x.shape),
}  # fmt: skip

NAMES = st.one_of(
    st.sampled_from(
        ["", " ", "nan", "NA", "None", "-1", "B", "T cell", "CD4⁺", "<script>", "a/b", "../x", "\x00", "x" * 300]
    ),
    st.text(max_size=6),
)
# Columns by their levels and the code of every cell.
COLUMNS: dict[str, Callable[[list[str], NDArray[np.int64]], Any]] = {
    "strings": lambda names, codes: np.array(names, dtype=object)[codes],
    "categories": lambda names, codes: pd.Categorical([names[code] for code in codes]),
    "unused levels": lambda names, codes: pd.Categorical(
        [names[code] for code in codes], categories=[*dict.fromkeys(names), "never used"]
    ),
    "missing levels": lambda names, codes: pd.Categorical.from_codes(
        np.where(codes == 0, -1, codes), categories=[f"{place} {name}" for place, name in enumerate(names)]
    ),
    "integers": lambda names, codes: codes,
    "floats": lambda names, codes: codes / 2,
    "not numbers": lambda names, codes: np.where(codes == 0, np.nan, codes),
    "truths": lambda names, codes: codes == 0,
    "numbers and words": lambda names, codes: np.array([0, *names[1:]], dtype=object)[codes],
    "None": lambda names, codes: np.array([None, *names[1:]], dtype=object)[codes],
    "pandas' strings": lambda names, codes: pd.array([names[code] for code in codes], dtype="string"),
    "pandas' integers": lambda names, codes: pd.array(np.where(codes == 0, None, codes), dtype="Int64"),
    "days": lambda names, codes: pd.to_datetime(codes, unit="D"),
}  # fmt: skip


@st.composite
def names_of(draw: Draw, what: str, number: int) -> list[str]:
    """Names of genes or cells: usual ones, the same twice, or anything."""
    usual = [f"{what}{place}" for place in range(number)]
    match draw(st.sampled_from(["usual"] * 3 + ["twice", "odd"])):
        case "twice":
            return [usual[0], *usual[:-1]]
        case "odd":
            return draw(st.lists(NAMES, min_size=number, max_size=number))
    return usual


@st.composite
def any_data(draw: Draw) -> AnnData:
    """1 to 60 cells of 1 to 30 genes, with the columns `type` and `batch`, usual but for some aspects."""
    odd = draw(st.sets(st.sampled_from(["values", "numbers", "type", "batch", "names", "shape"]), max_size=3))
    least = 1 if "shape" in odd else 20
    shape = draw(st.integers(least, 60)), draw(st.integers(1 if "shape" in odd else 5, 30))
    draws = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = VALUES[draw(st.sampled_from(list(VALUES))) if "values" in odd else "counts"](draws, shape)
    with np.errstate(all="ignore"):
        x = x.astype(draw(st.sampled_from(NUMBERS)) if "numbers" in odd else "float32")
    columns = {}
    for key in ("type", "batch"):
        levels = draw(st.lists(NAMES, min_size=1, max_size=5)) if key in odd else ["u", "v", "w"]
        kind = draw(st.sampled_from(list(COLUMNS))) if key in odd else "strings"
        columns[key] = COLUMNS[kind](levels, draws.integers(len(levels), size=shape[0]))
    cells, genes = (names_of(what, number) if "names" in odd else st.just([f"{what}{place}" for place in range(number)])
                    for what, number in zip(("cell", "gene"), shape, strict=True))  # fmt: skip
    layouts = list(LAYOUTS)[: 2 if x.dtype == np.float16 else None]  # no sparse matrix has half precision
    return AnnData(
        LAYOUTS[draw(st.sampled_from(layouts))](x),
        obs=pd.DataFrame(columns, index=draw(cells)),
        var=pd.DataFrame(index=draw(genes)),
    )


def complete(model: SCDGN, adata: AnnData) -> None:
    """Every cell has a type that was trained, and finite numbers."""
    labels, soft = model.predict(adata), model.predict(adata, soft=True)
    assert len(labels) == len(soft) == adata.n_obs
    assert set(labels) <= set(model.bundle.cell_types)
    assert np.isfinite(soft.to_numpy()).all() and np.allclose(soft.sum(axis=1), 1, atol=1e-4)
    assert np.isfinite(model.get_latent_representation(adata)).all()


def either(adata: AnnData, place: Path, prepare: PreprocessSettings, unlabeled: Any, **changes: object) -> None:
    """Train, predict, save, load and predict again; or a `ScdgnError` with a remedy."""
    try:
        SCDGN.setup_anndata(adata, "type", "batch", unlabeled=unlabeled)
        model = SCDGN(adata, settings={**SMALL, **changes}, preprocess=prepare)
        model.train(device="cpu")
    except ScdgnError as error:
        assert ": " in str(error) and "\n" not in str(error)
        tally["random data refused"] += 1
        return
    complete(model, adata)
    model.save(place, overwrite=True)
    again = SCDGN.load(place)
    assert np.array_equal(again.predict(adata), model.predict(adata))
    tally["random data trained and predicted"] += 1


def check_data(data: st.DataObject, place: Path) -> None:
    draw = data.draw
    prepare = PreprocessSettings(
        n_top_genes=draw(st.integers(1, 40)),
        scaling=draw(st.sampled_from(get_args(Scaling))),
        gene_selection=draw(st.sampled_from(get_args(GeneSelection))),
        markers_per_type=draw(st.integers(1, 10)),
    )
    unlabeled = draw(st.sampled_from(["error", "drop", "domain"]))
    either(draw(any_data()), place, prepare, unlabeled, method=draw(st.sampled_from(get_args(Method))))


def check_prediction(model: SCDGN, adata: AnnData) -> None:
    """A model of usual data, which some of the genes are taken from, looks at unusual ones."""
    adata.var_names = [*model.bundle.preprocessing.genes[: adata.n_vars]]
    try:
        complete(model, adata)
    except ScdgnError as error:
        assert ": " in str(error) and "\n" not in str(error)
        tally["random queries refused"] += 1
        return
    tally["random queries predicted"] += 1


def value_of(draw: Draw, key: str) -> object:
    """A value of a setting, mostly within its documented range."""
    kind: Any = kinds_of(Settings)[key]
    if choices := get_args(kind):
        return draw(st.sampled_from(choices))
    if kind is bool:
        return draw(st.booleans())
    low, high = _RANGES[key]
    if kind is int:  # sizes and times: what is large is slow and nothing else
        return draw(st.integers(int(low), 3 if key == "epochs" else 40))
    ends = st.sampled_from([low, 1e30 if high is None else high, 1e-6, 0.5, 1.0])
    beyond = st.sampled_from([-0.1, 2.0, float("nan"), float("inf")])
    return draw(st.one_of(ends, st.floats(low, 3.0 if high is None else high), beyond if draw(_SELDOM) else ends))


def check_settings(data: st.DataObject, place: Path) -> None:
    keys = [entry.name for entry in fields(Settings)]
    chosen = {key: value_of(data.draw, key) for key in sorted(data.draw(st.sets(st.sampled_from(keys), max_size=8)))}
    adata = tiny(cells={"a": 12, "b": 12, "c": 8}, genes=15)
    adata.obs["type"], adata.obs["batch"] = adata.obs["celltype"], adata.obs["tech"]
    either(adata, place, PreprocessSettings(), "error", **chosen)


def few(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


def many(examples: int) -> Any:
    return settings(few(examples), derandomize=False)


# AnnData warns of names that occur twice; whether scdgn refuses them is what is asked here.
twice = pytest.mark.filterwarnings("ignore:.*names are not unique")


@pytest.fixture(scope="module")
def usual() -> SCDGN:
    """A model of usual data, 30 genes."""
    adata = tiny(cells={"a": 20, "b": 20}, genes=30)
    SCDGN.setup_anndata(adata, "celltype", "tech")
    model = SCDGN(adata, settings=SMALL)
    model.train(device="cpu")
    return model


@twice
@few(25)
@given(data=st.data())
def test_any_data(data: st.DataObject, tmp_path: Path) -> None:
    check_data(data, tmp_path / "model")


# A model of 30 genes looks at some of them, and says so.
fewer = pytest.mark.filterwarnings("ignore:.*genes are not in the data")


@twice
@fewer
@few(20)
@given(adata=any_data())
def test_any_query(usual: SCDGN, adata: AnnData) -> None:
    check_prediction(usual, adata)


@few(20)
@given(data=st.data())
def test_any_settings(data: st.DataObject, tmp_path: Path) -> None:
    check_settings(data, tmp_path / "model")


@pytest.mark.long
@twice
@many(400)
@given(data=st.data())
def test_much_data(data: st.DataObject, tmp_path: Path) -> None:
    check_data(data, tmp_path / "model")


@pytest.mark.long
@twice
@many(300)
@given(adata=any_data())
def test_many_queries(usual: SCDGN, adata: AnnData) -> None:
    check_prediction(usual, adata)


@pytest.mark.long
@many(200)
@given(data=st.data())
def test_many_settings(data: st.DataObject, tmp_path: Path) -> None:
    check_settings(data, tmp_path / "model")
