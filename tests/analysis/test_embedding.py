"""The encoder's output in two dimensions, and the colours that pictures of it are drawn in."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from scdgn.analysis.chapters.embedding import (
    FEWEST_FOR_UMAP,
    MOST_NAMED,
    between,
    coordinates,
    figure,
    section,
    within_groups,
)
from scdgn.analysis.page import style
from scdgn.analysis.page.sections import Picture
from scdgn.analysis.studies.cells import TEST, TRAINING, Described
from scdgn.errors import DataError
from tests.analysis.test_classification import cells_of


def cells_in(types: int = 3, batches: int = 2, n: int = 60, latent: int = 5, seed: int = 0) -> Described:
    """Cells whose types lie 4 apart and whose batches lie 1 apart; the last batch is the test."""
    generator = np.random.default_rng(seed)
    code, batch = generator.integers(types, size=n), generator.integers(batches, size=n)
    names = tuple(f"type {place:02d}" for place in range(types))
    part = [TEST if batches > 1 and one == batches - 1 else TRAINING for one in batch]
    cells = cells_of([names[one] for one in code], np.eye(types)[code], part, names)
    centres = 4 * generator.normal(size=(types, latent)), generator.normal(size=(batches, latent))
    output = generator.normal(size=(n, latent)) + centres[0][code] + centres[1][batch]
    dataset = replace(cells.dataset, batches=batch, batch_names=tuple(f"batch {place:02d}" for place in range(batches)))
    return replace(cells, dataset=dataset, latent=output.astype(np.float32))


def drawn(picture: Figure) -> bytes:
    with style.styled():
        file = io.BytesIO()
        picture.savefig(file, format="png", dpi=50)
    return file.getvalue()


def test_pca_is_scikit_learns() -> None:
    cells = cells_in()
    table = coordinates(cells, "pca")
    expected = PCA(2).fit(cells.latent)

    np.testing.assert_allclose(table.attrs["explained"], expected.explained_variance_ratio_, rtol=1e-4)
    ours, theirs = table[["x", "y"]].to_numpy(), expected.transform(cells.latent)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-4)
    assert table["type"].tolist() == cells.type_names.tolist()
    assert table["batch"].tolist() == cells.batch_names.tolist()
    assert table["part"].tolist() == cells.part.tolist()


@pytest.mark.parametrize(("n", "latent"), [(1, 4), (2, 4), (8, 1)])
def test_pca_of_hardly_anything(n: int, latent: int) -> None:
    table = coordinates(cells_in(n=n, latent=latent), "pca")
    assert np.isfinite(table[["x", "y"]]).all(axis=None)
    assert sum(table.attrs["explained"]) == pytest.approx(float(n > 1))


def test_umap_is_the_same_every_time_keeps_types_apart_and_torch_as_many_threads() -> None:
    cells, threads = cells_in(n=100), torch.get_num_threads()
    first, second = coordinates(cells, "umap"), coordinates(cells, "umap")

    assert first.equals(second)
    assert torch.get_num_threads() == threads
    places = first[["x", "y"]].to_numpy()
    assert between(places.astype(np.float32), cells.type_names) > 0.8


def test_umap_of_too_few_cells_and_of_cells_that_are_all_the_same() -> None:
    with pytest.raises(DataError, match="too few for a UMAP"):
        coordinates(cells_in(n=FEWEST_FOR_UMAP - 1), "umap")
    same = cells_in(n=FEWEST_FOR_UMAP)
    table = coordinates(replace(same, latent=np.ones_like(same.latent)), "umap")
    assert not table[["x", "y"]].to_numpy().any()


def test_umap_of_cells_some_of_which_are_the_same() -> None:
    cells = cells_in(n=80)
    latent = cells.latent.copy()
    latent[:50] = latent[0]
    assert np.isfinite(coordinates(replace(cells, latent=latent), "umap")[["x", "y"]]).all(axis=None)


def test_share_of_variance_between_groups_by_hand() -> None:
    latent = np.array([[0.0], [2.0], [4.0], [6.0]], dtype=np.float32)  # total 20; means 1 and 5 of 3 apart: 16 between
    assert between(latent, np.array(["a", "a", "b", "b"])) == pytest.approx(16 / 20)
    assert between(latent + 1e4, np.array(["a", "b", "b", "a"])) == pytest.approx(0.0)
    assert np.isnan(between(latent, np.array(["a"] * 4)))
    assert np.isnan(between(np.ones_like(latent), np.array(["a", "a", "b", "b"])))


def test_within_a_type_batches_are_compared_and_within_a_batch_types() -> None:
    cells = cells_in(n=200)
    by_type, by_batch = within_groups(cells, "type", ["type 01"]), within_groups(cells, "batch", ["batch 00"])

    own = cells.type_names == "type 01"
    assert by_type["cell"].tolist() == cells.dataset.cells[own].tolist()
    np.testing.assert_allclose(np.abs(by_type["x"]), np.abs(PCA(2).fit_transform(cells.latent[own])[:, 0]), atol=1e-4)
    assert by_type["between"].iloc[0] == pytest.approx(between(cells.latent[own], cells.batch_names[own]))
    own = cells.batch_names == "batch 00"
    assert by_batch["between"].iloc[0] == pytest.approx(between(cells.latent[own], cells.type_names[own]))
    assert by_batch["between"].iloc[0] > by_type["between"].iloc[0]


def test_figure_names_the_methods_and_every_type_and_batch() -> None:
    cells = cells_in(types=13)
    table = coordinates(cells, "pca")
    picture = figure({"nn": table, "scdgn": table})

    assert [axes.get_title() for axes in picture.axes] == [
        "NN, by type", "scDGN, by type", "NN, by batch", "scDGN, by batch",
    ]  # fmt: skip
    types, batches = ([text.get_text() for text in axes.get_legend().get_texts()] for axes in picture.axes[1::2])
    assert types == sorted(set(cells.type_names))
    assert batches == ["batch 00", "batch 01"]
    assert len(drawn(picture)) > 1_000


def test_types_that_are_too_many_are_grey_together_and_names_may_hold_any_character() -> None:
    cells = cells_in(types=40, n=400)
    names = (r"_a $\frac$ & <b> %", *cells.dataset.cell_types[1:])
    cells = replace(cells, dataset=replace(cells.dataset, cell_types=names))
    picture = figure({"nn": coordinates(cells, "pca")})

    legend = [text.get_text() for text in picture.axes[0].get_legend().get_texts()]
    assert len(legend) == MOST_NAMED + 1
    assert legend[-1] == f"{40 - MOST_NAMED} smaller ones"
    assert len(drawn(picture)) > 1_000
    wholly = section({"nn": cells.take(cells.dataset.labels < 4)})
    assert wholly is not None
    assert all(drawn(item.figure) for item in wholly.items if isinstance(item, Picture))


def test_section_has_every_picture_and_says_which_cells_are_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.analysis.chapters.embedding.MOST_POINTS", 50)
    cells = cells_in(n=60)
    found = section({"scdgn": cells, "nn": cells})

    assert found is not None
    pictures = [item for item in found.items if isinstance(item, Picture)]
    assert [item.key for item in pictures] == ["pca", "umap", "pca-per-type", "pca-per-batch"]
    assert "50 cells drawn from 60" in pictures[0].caption
    assert "(batch batch 01) have an edge" in pictures[0].caption
    assert pictures[0].figure.axes[0].get_title() == "NN, by type"


@pytest.mark.parametrize(("chosen", "shown"), [("dann", "DANN"), ("scdgn", "scDGN"), ("nn", "scDGN")])
def test_the_method_that_was_chosen_is_shown_beside_the_plain_network(chosen: str, shown: str) -> None:
    found = section(dict.fromkeys(("nn", "dann", "scdgn"), cells_in(n=60)), chosen)

    assert found is not None
    picture = found.items[2]
    assert isinstance(picture, Picture) and picture.key == "pca-per-type"
    titles = [panel.get_title().partition("\n")[2].partition(":")[0] for panel in picture.figure.axes]
    assert set(titles) - {""} == {"NN", shown}


def test_cells_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.analysis.chapters.embedding.MOST_POINTS", 100)
    cells = cells_in(types=2, n=400)
    found = section({"nn": cells})

    assert found is not None
    first = found.items[0]
    assert isinstance(first, Picture)
    (points,) = first.figure.axes[0].collections
    assert len(points.get_offsets()) == 100
    assert (points.get_edgecolors()[:, 3] > 0).sum() == pytest.approx((cells.part == TEST).sum() / 4, abs=1)


def test_section_of_one_batch_of_few_cells_without_a_test() -> None:
    found = section({"dann": cells_in(batches=1, n=12)})

    assert found is not None
    assert [item.key for item in found.items if isinstance(item, Picture)] == ["pca", "pca-per-batch"]
    assert "none of them for the test" in str(found.items[0])
    assert section({}) is None


def test_cells_without_labels_are_drawn_grey_and_in_no_group() -> None:
    cells = cells_in()
    labels = np.where(cells.part == TEST, -1, cells.labels)
    cells = replace(cells, labels=labels, dataset=replace(cells.dataset, labels=labels))
    found = section({"nn": cells})

    assert found is not None
    assert [item.key for item in found.items if isinstance(item, Picture)] == ["pca", "umap", "pca-per-batch"]
    first = found.items[0]
    assert isinstance(first, Picture)
    assert first.figure.axes[0].get_legend().get_texts()[-1].get_text() == "no label"


# Simulation of colour vision without red, green or blue cones, on linear RGB (Machado et al. 2009, table 1).
VISION = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def cielab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = np.cbrt(np.maximum((linear @ XYZ.T) / XYZ.sum(axis=1), 0.008856)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart_with_every_colour_vision(vision: str) -> None:
    channels = np.array([[int(one[start : start + 2], 16) / 255 for start in (1, 3, 5)] for one in style.COLOURS])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = cielab(np.clip(linear @ np.array(VISION[vision]).T, 0, 1))

    apart = np.linalg.norm(seen[:, None] - seen, axis=-1)[~np.eye(len(seen), dtype=bool)]
    assert apart.min() > 16


def test_a_name_that_begins_with_an_underscore_is_in_legends() -> None:
    with style.styled():
        _, ((axes,),) = style.canvas(3, 2)
        axes.plot([0, 1], label=style.plain("_a"))
        axes.legend()
    assert [text.get_text().lstrip("\u200b") for text in axes.get_legend().get_texts()] == ["_a"]


def test_forty_types_all_look_different() -> None:
    looks = style.looks([str(place) for place in range(40)])
    assert len(set(looks.values())) == 40
    assert all(one.colour != other.colour for one, other in pairwise(looks.values()))


def test_cells_are_drawn_in_one_random_order_whatever_their_part_and_type() -> None:
    names = ["a", "b"] * 150
    table = pd.DataFrame(
        {"x": np.arange(300.0), "y": 0.0, "type": names, "batch": "one", "part": [TRAINING] * 200 + [TEST] * 100}
    )
    first, again = (figure({"nn": table}).axes[0].collections for _ in range(2))
    (points,), (same,) = first, again
    order = np.asarray(points.get_offsets())[:, 0]
    assert sorted(order) == table["x"].tolist() and order.tolist() == np.asarray(same.get_offsets())[:, 0].tolist()
    is_test = order >= 200
    assert 20 < is_test[:150].sum() < 80  # neither below the others nor above them
    assert (points.get_sizes()[is_test] > points.get_sizes()[~is_test].max()).all()
    edged = points.get_edgecolors()[:, 3] > 0
    assert (edged == is_test).all()


def test_panels_are_stacked_on_a_narrow_page() -> None:
    with style.styled(), style.page_width(style.PHONE):
        drawing, axes = style.canvas(8.0, 4.0, 2, 3)
        first = style.over_column(axes[:, 0])
        style.leave_empty([axes[1, 2]])
        drawing.draw_without_rendering()
    assert drawing.get_figwidth() == style.PHONE and drawing.get_figheight() == 12.0
    left = [first, axes[0, 1], axes[0, 2], axes[1, 1]]
    assert drawing.axes == sorted(left, key=drawing.axes.index) and len(drawing.axes) == 4
    places = [ax.get_position() for ax in left]
    assert len({round(place.x0, 6) for place in places}) == 1
    assert all(above.y0 > below.y1 for above, below in pairwise(places))
