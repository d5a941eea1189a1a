"""Simulated cells of several platforms: data of any size, with the truth known and nothing to download.

The counts of gene g in a cell of type t measured on platform d are negative binomial (gamma, then Poisson) with mean

    depth of the cell * ((1 - ambient) * p[d, t, g] + ambient * average of p[d, ., g] over the cells of d)

    log p[d, t] = baseline + programme(lineage of t) + programme(t) + bias(d) + response(t, d) + constant

without the genes that platform d does not capture. Related types share a lineage, and programmes overlap. The response
of one type to one platform is what the other types cannot teach: it makes confounded training sets hard.

Difficulty, as `test_difficulty` of tests/test_simulate.py measures it: logistic regression on 1,500 log-normalised
cells of the pancreas shape, tested on all of fluidigmc1, has an accuracy of 0.97 where the training technologies have
all types, and of 0.66 to 0.79 with the types that pancreas1 to pancreas4 leave them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scdgn.errors import SettingsError, nearest

if TYPE_CHECKING:
    from anndata import AnnData

LABELS_KEY = "celltype"
BATCH_KEY = "tech"
_ENTRIES_AT_A_TIME = 4_000_000  # dense numbers in work at once, whatever the size of the result


@dataclass(frozen=True)
class Simulation:
    """What to simulate.

    Parameters
    ----------
    cells
        Number of cells of each domain.
    cell_types
        Names of the types, in lineages of three: neighbours in this order are related.
    frequencies
        Relative number of cells of each type; by default each type is 0.75 times as frequent as the one before it.
    present
        The types that a domain has; a domain that is not named has all.
    genes
        Number of genes.
    depth
        Typical counts per cell; the domains spread around it over a factor of `depth_range`, all different.
    depth_range
        Ratio of the deepest to the shallowest domain.
    marker_strength
        Standard deviation of a marker gene's log fold change.
    lineage_strength
        Same for the genes that the types of a lineage have in common.
    platform_bias
        Standard deviation of a gene's log bias on a platform.
    response
        Standard deviation of a gene's log change that only one type shows on one platform.
    lost_genes
        Share of the genes that a platform does not capture.
    ambient
        Share of a cell's counts that come from the average cell of its domain.
    dispersion
        Variance of the counts beyond Poisson, as a share of the squared mean.
    seed
        Any whole number from 0; the same settings give the same cells.
    """

    cells: Mapping[str, int]
    cell_types: tuple[str, ...]
    frequencies: tuple[float, ...] | None = None
    present: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    genes: int = 3000
    depth: float = 4000.0
    depth_range: float = 16.0
    marker_strength: float = 1.0
    lineage_strength: float = 1.0
    platform_bias: float = 1.0
    response: float = 0.8
    lost_genes: float = 0.1
    ambient: float = 0.2
    dispersion: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if faults := list(_faults(self)):
            raise SettingsError(*faults)


def simulate(settings: Simulation) -> AnnData:
    """Draw the cells.

    They are drawn some thousands at a time and kept sparse, so that memory is at most twice that of the result.

    Returns
    -------
    AnnData
        Counts as float32 CSR (cells, genes), domain after domain; `obs["celltype"]` and `obs["tech"]` are categories of
        the types and domains that have cells.
    """
    import anndata
    import pandas as pd

    platforms = _Platforms.draw(settings)
    parts: list[sparse.csr_matrix] = []
    labels: list[NDArray[np.int64]] = []
    for domain, name in enumerate(settings.cells):
        rng = np.random.default_rng([settings.seed, 1, domain])
        types = _types_of_cells(settings, name, rng)
        labels.append(types)
        parts.extend(_counts(settings, platforms, domain, types, rng))
    obs = pd.DataFrame(
        {
            LABELS_KEY: pd.Categorical(np.asarray(settings.cell_types)[np.concatenate(labels)]),
            BATCH_KEY: pd.Categorical(np.repeat(list(settings.cells), list(settings.cells.values()))),
        },
        index=[f"{name}-{cell + 1}" for name, cells in settings.cells.items() for cell in range(cells)],
    )
    var = pd.DataFrame(index=[f"gene{gene + 1}" for gene in range(settings.genes)])
    return anndata.AnnData(sparse.vstack(parts, format="csr"), obs=obs, var=var)


def paper_shape(name: str, seed: int = 0) -> Simulation:
    """Settings in the shape of one of the paper's data sets (Ge et al. 2020, table 1): pancreas, pbmc or scquery.

    Cells, types, domains and genes are those of the table, and the mutual information of type and training domain is
    close to it for pbmc and scquery. The pancreas shape has the names of the real types and technologies, and the
    technologies' real number of cells; the other names are numbers, and the types of each scquery domain are random.
    """
    if name not in _SHAPES:
        raise SettingsError(f"shape {name!r} does not exist: {nearest(name, _SHAPES)}")
    return _SHAPES[name](seed)


def _pancreas(seed: int) -> Simulation:
    frequency = {
        "alpha": 0.33,
        "beta": 0.22,
        "delta": 0.07,
        "gamma": 0.05,
        "epsilon": 0.01,
        "acinar": 0.10,
        "ductal": 0.13,
        "activated_stellate": 0.035,
        "quiescent_stellate": 0.015,
        "endothelial": 0.015,
        "macrophage": 0.01,
        "mast": 0.008,
        "schwann": 0.007,
    }
    return Simulation(
        cells={"celseq": 1004, "celseq2": 2285, "smartseq2": 2394, "fluidigmc1": 638},
        cell_types=tuple(frequency),
        frequencies=tuple(frequency.values()),
        seed=seed,
    )


def _pbmc(seed: int) -> Simulation:
    training = {f"domain{i + 1}": 3248 if i else 3241 for i in range(8)}  # 25,977 cells
    return Simulation(
        cells={**training, "domain9": 2992}, cell_types=tuple(f"type{i + 1:02}" for i in range(10)), seed=seed
    )


def _scquery(seed: int) -> Simulation:
    rng = np.random.default_rng([seed, 2])
    types = tuple(f"type{i + 1:02}" for i in range(39))
    cells: dict[str, int] = {}
    present: dict[str, tuple[str, ...]] = {}
    for part, total, domains, known in (("train", 37697, 99, 39), ("valid", 3023, 26, 19), ("test", 3770, 30, 23)):
        share = 0.2 / domains + 0.8 * rng.dirichlet(np.full(domains, 0.7))
        sizes = (share * total).astype(int)
        sizes[0] += total - sizes.sum()
        # Dealing the types round first lets every one occur; a study then has two to nine more.
        dealt = rng.permutation(len(types))[:known]
        for domain in range(domains):
            name = f"{part}{domain + 1:02}"
            more = rng.choice(dealt, size=rng.integers(2, 10), replace=False)
            own = {int(dealt[domain % known]), *more.tolist()}
            cells[name] = int(sizes[domain])
            present[name] = tuple(types[i] for i in sorted(own))
    return Simulation(cells=cells, cell_types=types, present=present, genes=20499, depth=8000.0, seed=seed)


_SHAPES = {"pancreas": _pancreas, "pbmc": _pbmc, "scquery": _scquery}


@dataclass(frozen=True)
class _Platforms:
    """What the types express, and how each platform measures it."""

    log_profile: NDArray[np.float64]  # (types, genes)
    log_bias: NDArray[np.float64]  # (domains, genes), -inf for the genes that the platform does not capture
    depth: NDArray[np.float64]  # (domains,) typical counts per cell

    @classmethod
    def draw(cls, settings: Simulation) -> _Platforms:
        rng = np.random.default_rng([settings.seed, 0])
        types, domains, genes = len(settings.cell_types), len(settings.cells), settings.genes
        lineage = np.arange(types) // 3
        log_profile = (
            rng.normal(0, 1.5, genes)
            + _programmes(rng, lineage[-1] + 1, genes, settings.lineage_strength)[lineage]
            + _programmes(rng, types, genes, settings.marker_strength)
        )
        log_bias = rng.normal(0, settings.platform_bias, (domains, genes))
        ranks = rng.random((domains, genes)).argsort(axis=1)
        log_bias[ranks < int(settings.lost_genes * genes)] = -np.inf  # never all genes of a platform
        spread = np.linspace(-0.5, 0.5, domains) if domains > 1 else np.zeros(1)
        depth = settings.depth * settings.depth_range ** rng.permutation(spread)
        return cls(log_profile, log_bias, depth)


def _faults(settings: Simulation) -> Iterator[str]:
    types, domains = settings.cell_types, settings.cells
    if not types or len(set(types)) < len(types):
        yield "cell_types is empty or repeats a name: give different names"
    if not domains or min(domains.values()) < 1:
        yield "cells is empty or has a domain without cells: give each domain at least 1"
    if settings.frequencies is not None and (len(settings.frequencies) != len(types) or min(settings.frequencies) <= 0):
        yield f"frequencies must be {len(types)} numbers above 0, one for each cell type: mend them"
    for domain, present in settings.present.items():
        if domain not in domains:
            yield f"present names domain {domain!r}, which does not exist: {nearest(domain, domains)}"
        if not present:
            yield f"present leaves domain {domain!r} without a cell type: give it at least one"
        for name in present:
            if name not in types:
                yield f"present gives {domain!r} cell type {name!r}, which does not exist: {nearest(name, types)}"
    for key, least in (("genes", 2), ("depth_range", 1), ("seed", 0)):
        if not getattr(settings, key) >= least:
            yield f"{key} is {getattr(settings, key)}: set at least {least}"
    for key in ("depth", "dispersion"):
        if not getattr(settings, key) > 0:
            yield f"{key} is {getattr(settings, key)}: set it above 0"
    for key in ("marker_strength", "lineage_strength", "platform_bias", "response"):
        if not getattr(settings, key) >= 0:
            yield f"{key} is {getattr(settings, key)}: set it to 0 or more"
    for key in ("lost_genes", "ambient"):
        if not 0 <= getattr(settings, key) < 1:
            yield f"{key} is {getattr(settings, key)}: set it from 0 to below 1"


def _types_of_cells(settings: Simulation, domain: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """Type of each cell; each type present has at least one where the domain has as many cells as types."""
    names = settings.present.get(domain, settings.cell_types)
    present = [i for i, name in enumerate(settings.cell_types) if name in names]
    frequencies = np.asarray(settings.frequencies or 0.75 ** np.arange(len(settings.cell_types)))[present]
    # No two samples of a tissue have the same composition.
    share = frequencies * rng.lognormal(0, 0.5, len(present))
    cells = settings.cells[domain]
    first = rng.permutation(present)[:cells]
    return rng.permutation(np.concatenate([first, rng.choice(present, cells - len(first), p=share / share.sum())]))


def _counts(
    settings: Simulation, platforms: _Platforms, domain: int, types: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[sparse.csr_matrix]:
    """Counts of one domain's cells, some thousands at a time."""
    genes = settings.genes
    response = _programmes(rng, len(settings.cell_types), genes, settings.response)
    profile = _shares(platforms.log_profile + platforms.log_bias[domain] + response)  # (types, genes)
    average = np.bincount(types, minlength=len(profile)) @ profile / len(types)  # (genes,)
    profile = ((1 - settings.ambient) * profile + settings.ambient * average).astype(np.float32)
    depth = (platforms.depth[domain] * rng.lognormal(0, 0.4, len(types))).astype(np.float32)
    shape = 1 / settings.dispersion
    step = max(_ENTRIES_AT_A_TIME // genes, 1)
    for start in range(0, len(types), step):
        chunk = slice(start, start + step)
        mean = profile[types[chunk]] * depth[chunk, None]  # (cells of the chunk, genes)
        mean *= rng.standard_gamma(shape, mean.shape, dtype=np.float32) / np.float32(shape)
        yield _poisson(mean, rng)


def _poisson(mean: NDArray[np.float32], rng: np.random.Generator) -> sparse.csr_matrix:
    """Poisson counts, drawn only where there are any.

    A Poisson process of unit rate has its first event at an exponential time: where that lies beyond the mean the count
    is zero, elsewhere it is one and a Poisson count for the time that remains.
    """
    first = rng.standard_exponential(mean.shape, dtype=np.float32)
    counts = sparse.csr_matrix(np.where(first < mean, mean - first, 0))
    counts.data = (1 + rng.poisson(counts.data)).astype(np.float32)
    return counts


def _programmes(rng: np.random.Generator, count: int, genes: int, strength: float) -> NDArray[np.float64]:
    """Log fold changes of `count` programmes, each of a random tenth of the genes, so that they overlap."""
    return np.where(rng.random((count, genes)) < 0.1, rng.normal(0, strength, (count, genes)), 0)


def _shares(log_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of each row of (types, genes) that sum to 1."""
    values: NDArray[np.float64] = np.exp(log_values - log_values.max(axis=1, keepdims=True))
    values /= values.sum(axis=1, keepdims=True)
    return values
