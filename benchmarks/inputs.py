"""Random cells for benchmarks of speed: nothing can be learned from them, and no value of them matters."""

from __future__ import annotations

import torch

from scdgn.core.pack.members import Cells

TYPES, DOMAINS = 13, 3


def random_cells(cells: int, genes: int, density: float = 0.1, types: int = TYPES, domains: int = DOMAINS) -> Cells:
    """Dense cells of which a part is not zero: a tenth, as in real counts (0.11 in the PBMC data of the tests)."""
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(cells, genes, generator=draws)
    x *= torch.rand(x.shape, generator=draws) < density
    labels, codes = (torch.randint(count, (cells,), generator=draws) for count in (types, domains))
    return Cells(x, labels, codes, types, domains)
