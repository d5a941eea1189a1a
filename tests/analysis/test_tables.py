"""Table 2 says what the summaries say, beside what was published; tables keep their characters in every file."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scdgn.analysis.chapters import information
from scdgn.analysis.chapters.tables import section, table2, table2_wide
from scdgn.analysis.page.sections import Picture, Section, Table, Text
from scdgn.analysis.page.tables import write
from scdgn.analysis.studies.results import Group, Results, grouped
from scdgn.cells.fields import Fields
from scdgn.cells.sources import Source
from scdgn.errors import OutputError
from scdgn.search.study.settings import StudySettings
from tests.faults import tiny
from tests.summaries import summary_with

SEEDS = [0.5, 0.7, 0.6]


def part(values: Sequence[float]) -> dict[str, Any]:
    """What a summary says of a score of the final seeds; the second one was picked."""
    return {
        "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "picked": values[min(1, len(values) - 1)], "ensemble": max(values) + 0.01, "by_seed": list(values),
        "best_oracle": max(values),
    }  # fmt: skip


def study(
    name: str,
    method: str,
    values: Sequence[float] = SEEDS,
    dataset: str | None = None,
    data: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Results:
    """A finished search whose accuracy is `values`, and whose other scores are a tenth lower."""
    facts = {
        "training_cells": 100, "training_domains": ["a", "b"], "test_batches": ["t"], "test_cells": 40,
        "fingerprint": name.rpartition("/")[0], "test_fingerprint": "123456789",
        "mutual_information_bits": 0.5, "cells_by_type": {"B": 50, "T": 50}, "genes": 30, **(data or {}),
    }  # fmt: skip
    lower = [value - 0.1 for value in values]
    scores = {"accuracy": part(values), "macro_f1": part(lower), "balanced_accuracy": part(lower)}
    final = {"seeds": list(range(len(values))), "test": scores}
    summary = summary_with(study=name, method=method, data=facts, winner={"score": 0.5}, final=final, **changes)
    source = Source(dataset=dataset) if dataset else Source(data=Path("nowhere.h5ad"), fields=Fields("t", "b"))
    settings = StudySettings(name=name, source=source, method=method)  # type: ignore[arg-type]
    return Results(name, settings, {}, summary, ())


def ten(name: str, method: str, best: float = 0.95, **given: Any) -> Results:
    """The write-up's protocol."""
    one = study(name, method, **given)
    summary = summary_with(
        protocol="seed-best-of-10", study=name, method=method,
        data={**one.summary.to_json()["data"], "fingerprint": name.split("/best-of-10")[0]},
        best_oracle={"accuracy": best, "macro_f1": best - 0.2, "balanced_accuracy": best - 0.3},
    )  # fmt: skip
    return replace(one, summary=summary)


def row(table: pd.DataFrame, **wanted: Any) -> dict[str, Any]:
    for key, value in wanted.items():
        table = table[table[key] == value]
    assert len(table) == 1
    return {str(key): value for key, value in table.iloc[0].items()}


def pancreas(number: int) -> list[Results]:
    name = f"paper/pancreas{number}"
    return [study(f"{name}/{method}", method, dataset=f"pancreas{number}") for method in ("nn", "dann", "scdgn")]


# --- what is in it


def test_a_row_says_what_the_summary_says() -> None:
    table = table2(grouped([study("set/nn", "nn")]))
    assert table["metric"].tolist() == ["accuracy", "macro_f1", "balanced_accuracy"]
    found = row(table, metric="accuracy")
    assert (found["data_set"], found["test"], found["study"]) == ("set", "t, 40 cells", "set/nn")
    assert (found["training_cells"], found["mutual_information"], found["seeds"]) == (100, 0.5, 3)
    assert found["mean"] == pytest.approx(0.6) and found["std"] == pytest.approx(0.1)
    assert (found["picked"], found["ensemble"], found["best_oracle"]) == (0.7, 0.71, 0.7)
    assert math.isnan(found["best_of_ten"]) and math.isnan(found["published"])
    assert row(table, metric="macro_f1")["mean"] == pytest.approx(0.5)


def test_the_writeups_ten_stand_beside_the_search() -> None:
    results = [study(f"set/{method}", method) for method in ("nn", "dann", "scdgn")]
    results += [ten("set/best-of-10/scdgn", "scdgn", 0.95), ten("set/best-of-10/dann", "dann", 0.85)]
    (group,) = grouped(results)
    table = table2([group])
    assert len(table) == 9
    accuracy = table[table["metric"] == "accuracy"].set_index("method")["best_of_ten"]
    assert accuracy.to_dict() == {"nn": 0.7, "dann": 0.85, "scdgn": 0.95}
    assert row(table, metric="macro_f1", method="scdgn")["best_of_ten"] == pytest.approx(0.75)


def test_ten_alone_make_a_row_too() -> None:
    table = table2(grouped([ten("set/best-of-10/dann", "dann", 0.85)]))
    found = row(table, metric="accuracy")
    assert found["best_of_ten"] == 0.85 and math.isnan(found["mean"]) and found["seeds"] is pd.NA
    made = section(grouped([ten("set/best-of-10/dann", "dann", 0.85)]))
    assert made is not None


def test_the_papers_numbers_stand_beside_ours_where_it_has_them() -> None:
    table = table2(grouped(pancreas(3)))
    published = table[table["metric"] == "accuracy"].set_index("method")["published"]
    assert (published["nn"], published["scdgn"]) == (0.545, 0.663) and math.isnan(published["dann"])
    assert table[table["metric"] != "accuracy"]["published"].isna().all()
    simulated = table2(grouped([study("set/nn", "nn", dataset="simulated-pancreas3")]))
    assert simulated["published"].isna().all()


def test_studies_without_test_cells_have_no_row() -> None:
    one = study("query", "nn", data={"test_batches": [], "test_cells": 0})
    final = replace(one.search.final, test=None)
    groups = grouped([replace(one, summary=replace(one.search, final=final))])
    assert table2(groups).empty and section(groups) is None


def test_one_seed_has_no_deviation() -> None:
    found = row(table2(grouped([study("set/nn", "nn", [0.5])])), metric="accuracy")
    assert (found["mean"], found["seeds"]) == (0.5, 1) and math.isnan(found["std"])


def test_other_test_cells_of_the_same_name_are_told_apart() -> None:
    table = table2(grouped([study("a/nn", "nn"), study("b/nn", "nn", data={"test_fingerprint": "abcdefghi"})]))
    assert table["test"].unique().tolist() == ["t, 40 cells", "t, 40 cells (abcdef)"]


def test_information_that_the_summary_lacks_is_computed_from_the_cells(tmp_path: Path) -> None:
    from scdgn.cells.sources import read
    from scdgn.core.metrics import mutual_information

    tiny(present={"a": ("B", "T")}).write_h5ad(tmp_path / "cells.h5ad")
    source = Source(data=tmp_path / "cells.h5ad", fields=Fields("celltype", "tech"), test_batch="c")
    cells = read(source)
    one = study("set/nn", "nn", data={"training_cells": 100})
    prints = {
        "fingerprint": cells.dataset.take(cells.split.train).fingerprint(),
        "test_fingerprint": cells.dataset.take(cells.split.test).fingerprint(),
    }
    data = replace(one.summary.data, mutual_information_bits=None, **prints)
    one = replace(one, settings=replace(one.settings, source=source), summary=replace(one.summary, data=data))
    labels, batches = (values[cells.split.train] for values in (cells.dataset.labels, cells.dataset.batches))
    found = row(table2([Group("set", (one,))]), metric="accuracy")
    assert (
        found["mutual_information"] == pytest.approx(mutual_information(labels, batches))
        and found["mutual_information"] > 0
    )
    (tmp_path / "cells.h5ad").unlink()
    gone = row(table2([Group("set", (one,))]), metric="accuracy")
    assert math.isnan(gone["mutual_information"]) and gone["training_cells"] == 100


def test_nothing_is_downloaded_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "source_of", lambda results: pytest.fail("the cells were read"))
    one = study("set/nn", "nn", dataset="pancreas1")
    data = replace(one.summary.data, mutual_information_bits=None)
    table = table2(grouped([replace(one, summary=replace(one.summary, data=data))]))
    assert table["mutual_information"].isna().all()


# --- as the paper prints it


def test_wide_has_a_row_per_set_and_their_mean() -> None:
    results = [study("a/nn", "nn"), study("a/scdgn", "scdgn", [0.8, 0.9]), study("b/nn", "nn", [0.2, 0.4])]
    results.append(study("b/scdgn", "scdgn", [0.6, 0.6]))
    wide = table2_wide(table2(grouped(results)))
    assert wide["data set"].tolist() == ["a", "b", "mean of 2"]
    assert wide["NN"].tolist() == pytest.approx([0.6, 0.3, 0.45])
    assert wide["scDGN"].tolist() == pytest.approx([0.85, 0.6, 0.725])
    assert wide["NN (sd)"].iloc[0] == pytest.approx(0.1) and math.isnan(wide["NN (sd)"].iloc[2])
    assert wide.attrs["best"] == ["NN", "scDGN"]
    assert table2_wide(table2(grouped(results)), "macro_f1", "ensemble")["scDGN"].iloc[0] == pytest.approx(0.81)


def test_a_method_that_lacks_a_set_has_no_mean() -> None:
    wide = table2_wide(table2(grouped([study("a/nn", "nn"), study("a/dann", "dann"), study("b/nn", "nn")])))
    assert math.isnan(wide["DANN"].iloc[1]) and math.isnan(wide["DANN"].iloc[2])
    assert wide["NN"].iloc[2] == pytest.approx(0.6)


def test_sets_of_other_test_cells_are_not_averaged() -> None:
    other = study("b/nn", "nn", data={"test_fingerprint": "abcdefghi", "test_batches": ["u"]})
    wide = table2_wide(table2(grouped([study("a/nn", "nn"), other])))
    assert wide["data set"].tolist() == ["a", "b"]


def test_published_columns_are_of_methods_that_have_them() -> None:
    wide = table2_wide(table2(grouped([*pancreas(1), *pancreas(3)])))
    assert wide["NN, published"].tolist() == pytest.approx([0.72, 0.545, (0.72 + 0.545) / 2])
    assert "DANN, published" not in wide


def test_who_saw_the_test_cells_does_not_stand_for_the_method() -> None:
    saw = study("a/adapt", "dann", [0.9, 0.9], transductive=True, data={"fingerprint": "a"})
    wide = table2_wide(table2(grouped([saw, study("a/dann", "dann")])))
    assert wide["DANN"].tolist() == pytest.approx([0.6])


# --- as files

NASTY = "T & B_cells 100% #1 {$x$} ~^ \\ <b> | *"


def nasty() -> pd.DataFrame:
    frame = pd.DataFrame(
        {"data_set & more": [NASTY, "plain"], "cells": pd.array([7, None], dtype="Int64"), "NN": [0.25, 0.5],
         "scDGN": [1 / 3, 0.5]}
    )  # fmt: skip
    frame.attrs["best"] = ["NN", "scDGN"]
    return frame


def test_csv_has_all_digits(tmp_path: Path) -> None:
    paths = write(nasty(), tmp_path / "table.of.things")
    assert [path.name for path in paths] == [f"table.of.things.{kind}" for kind in ("csv", "md", "tex")]
    with paths[0].open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1] == [NASTY, "7", "0.25", str(1 / 3)] and rows[2][1] == ""
    assert float(rows[1][3]) == 1 / 3


def test_markdown_escapes_and_marks_the_best(tmp_path: Path) -> None:
    text = write(nasty(), tmp_path / "table")[1].read_text()
    lines = text.splitlines()
    assert lines[0] == r"| data\_set &amp; more | cells | NN | scDGN |"
    assert lines[1] == "| --- | --: | --: | --: |"
    assert r"T &amp; B\_cells 100% #1 {$x$} ~^ \\ &lt;b> \| \*" in lines[2]
    assert lines[2].endswith("| 7 | 0.250 | **0.333** |")
    assert lines[3] == "| plain |  | **0.500** | **0.500** |"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines)


def test_latex_escapes_and_marks_the_best(tmp_path: Path) -> None:
    text = write(nasty(), tmp_path / "table")[2].read_text()
    assert text.startswith("\\begin{tabular}{lrrr}\n\\toprule\n")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n") and "\\midrule" in text
    assert r"data\_set \& more & cells & NN & scDGN \\" in text
    escaped = r"T \& B\_cells 100\% \#1 \{\$x\$\} \textasciitilde \textasciicircum"
    assert escaped in text and r"\textbackslash" in text
    assert r"7 & 0.250 & \textbf{0.333} \\" in text
    assert r"plain &  & \textbf{0.500} & \textbf{0.500} \\" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [3, 3, 3]
    # Braces and formulas are closed, or LaTeX would go on reading.
    bare = re.sub(r"\\[{}$]", "", text)
    assert bare.count("{") == bare.count("}") and "$" not in bare


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write(nasty(), tmp_path / "file" / "table")


# --- the section


def items(made: Section | None, kind: type) -> list[Any]:
    assert made is not None
    return [item for item in made.items if isinstance(item, kind)]


def test_one_data_set_has_tables_and_no_readings() -> None:
    made = section(grouped([study("set/nn", "nn"), study("set/dann", "dann")]))
    keys = [table.key for table in items(made, Table)]
    assert keys == ["accuracy-by-method", "table2-accuracy", "table2-macro-f1", "statistics"]
    assert not items(made, Picture)
    long = items(made, Table)[1]
    assert "best of 10 draws (oracle)" not in long.frame and "oracle" in long.caption


def test_several_data_sets_are_read_and_drawn(tmp_path: Path) -> None:
    results = []
    for place in range(4):
        facts = {
            "mutual_information_bits": 1 - 0.2 * place,
            "training_cells": 100 + place,
            "fingerprint": str(place),
            "test_batches": ["$t_0$"],
        }
        for method, start in (("nn", 0.3), ("scdgn", 0.5)):
            values = [start + 0.1 * place, start + 0.1 * place + 0.02]
            results.append(study(f"all/set_{place}/{method}", method, values, data=facts))
    made = section(grouped(results))
    assert [table.key for table in items(made, Table)][-1] == "readings"
    assert [picture.key for picture in items(made, Picture)] == [
        "macro-f1-against-information", "accuracy-against-information",
    ]  # fmt: skip
    words = " ".join(text.words for text in items(made, Text))
    assert "NN -1.00 (-1.00 to" in words and "In the published table, over 6 data sets" in words
    assert "NN -0.71" in words and "scDGN -0.89" in words
    from scdgn.analysis.page.style import styled

    for picture in items(made, Picture):
        with styled():
            picture.figure.savefig(tmp_path / "picture.png")
    for table in items(made, Table):
        assert len(write(table.frame, tmp_path / table.key)) == 3


def test_two_data_sets_are_too_few_to_be_read() -> None:
    made = section(grouped([study("a/nn", "nn"), study("b/nn", "nn")]))
    assert "three data sets" in " ".join(text.words for text in items(made, Text))


def test_statistics_stand_beside_the_published_ones() -> None:
    made = section(grouped([*pancreas(1), *pancreas(2)]))
    (statistics,) = [table for table in items(made, Table) if table.key == "statistics"]
    frame = statistics.frame
    training = frame[(frame["data set"] == "paper/pancreas1") & (frame["part"] == "training")].iloc[0]
    assert training["cells"] == 100 and training["cell types"] == 2 and training["genes"] == 30
    assert training["mutual information (bits)"] == 0.5 and training["entropy of types (bits)"] == 1.0
    assert (training["published cells"], training["published mutual information"]) == (2490, 0.902)
    assert frame["data set"].tolist()[-2:] == ["pancreas (as published)"] * 2
    assert frame["cells"].tolist()[-2:] == [6321, 638] and "include the test cells" in statistics.caption


def test_searches_of_one_method_are_named() -> None:
    again = study("set/repeat2/nn", "nn", data={"fingerprint": "set"})
    made = section(grouped([study("set/nn", "nn"), again]))
    assert items(made, Table)[1].frame["study"].tolist() == ["set/nn", "set/repeat2/nn"]
