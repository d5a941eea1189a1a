"""A live display in the output of a notebook's cell, without widgets, which not every notebook has."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.text import Text


class CellLive(Live):
    """rich's live display, where its console is a notebook's: rich's own needs ipywidgets, and says so instead."""

    _handle: Any = None

    def refresh(self) -> None:
        """Show what there is now in the place of what was shown before."""
        self._show(self.get_renderable())

    def stop(self) -> None:
        """Leave nothing behind but what was printed, as on a terminal."""
        if self.is_started:
            super().stop()
            self._show(Text(""))

    def _show(self, renderable: RenderableType) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(_InCell(renderable), display_id=True)
        else:
            self._handle.update(_InCell(renderable))


class _InCell(JupyterMixin):
    """What rich renders, as a notebook shows it."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich__(self) -> RenderableType:
        return self._renderable
