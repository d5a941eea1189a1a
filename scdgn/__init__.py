"""scDGN: cell-type classifiers that generalise to an unseen batch, on AnnData.

Names resolve on first use, so that `import scdgn` costs nothing and the numerical core (`scdgn.core.training` and what
it imports) works where only torch and numpy are installed. `load_study` is the analysis's, which stands on top of this
package: the one name here that looks up, for whoever has typed `import scdgn` in a notebook.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scdgn.analysis.finished import load_study as load_study
    from scdgn.errors import ScdgnError as ScdgnError
    from scdgn.model.scdgn import SCDGN as SCDGN

__version__ = "0.1.0"
_HOME = {"SCDGN": "scdgn.model.scdgn", "ScdgnError": "scdgn.errors", "load_study": "scdgn.analysis.finished"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scdgn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
