"""A frame as files: CSV, Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdgn.files import new_file


def write(frame: pd.DataFrame, stem: Path, decimals: int = 3) -> list[Path]:
    """Write a table as STEM.csv with all digits, and rounded as STEM.md and STEM.tex; these files.

    The .tex file is a tabular for LaTeX with booktabs. Where the columns named in `frame.attrs["best"]` are numbers of
    the same kind, the highest of each row is bold in both. The index is left out.

    Parameters
    ----------
    frame
        Its columns named as they are to be read. The texts may hold any character.
    stem
        Path without suffix; its folder exists.
    decimals
        Of numbers that are not whole, but for the .csv.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    content = {".csv": frame.to_csv(index=False), ".md": _markdown(frame, decimals), ".tex": _latex(frame, decimals)}
    paths = []
    for suffix, text in content.items():
        path = stem.with_name(stem.name + suffix)
        with new_file(path) as place:
            place.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def _cell(value: Any, decimals: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:.{decimals}f}"
    return str(value)


def _best(frame: pd.DataFrame) -> pd.DataFrame:
    """Which cells hold the highest number of their row among those that compare."""
    mask = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    columns = [name for name in frame.attrs.get("best", ()) if name in frame]
    if len(columns) > 1:
        numbers = frame[columns].astype(float)
        mask[columns] = numbers.eq(numbers.max(axis=1), axis=0)
    return mask


def _markdown(frame: pd.DataFrame, decimals: int) -> str:
    def plain(text: str) -> str:
        for character in "\\`*_[]|":
            text = text.replace(character, f"\\{character}")
        return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")

    best = _best(frame).to_numpy()
    lines = [[plain(str(name)) for name in frame.columns]]
    lines.append(["--:" if pd.api.types.is_numeric_dtype(kind) else "---" for kind in frame.dtypes])
    for row, values in enumerate(frame.itertuples(index=False, name=None)):
        cells = [plain(_cell(value, decimals)) for value in values]
        lines.append([f"**{cell}**" if best[row, place] else cell for place, cell in enumerate(cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(frame: pd.DataFrame, decimals: int) -> str:
    best = _best(frame)
    style = frame.reset_index(drop=True).style.hide(axis="index")
    style = style.format(precision=decimals, na_rep="", escape="latex").format_index(axis=1, escape="latex")
    style = style.apply(lambda _: np.where(best, "textbf:--rwrap;", ""), axis=None)
    return str(style.to_latex(hrules=True))
