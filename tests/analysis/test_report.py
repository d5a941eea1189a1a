"""A report of real studies: what it says is what came out, and what it lacks it tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scdgn.analysis import report as module
from scdgn.analysis.chapters import first_screen, searches
from scdgn.analysis.chapters.classification import by_type
from scdgn.analysis.page.sections import Picture, Table, Text
from scdgn.analysis.report import Asked, compose
from scdgn.analysis.studies.cells import TEST, TRAINING, VALIDATION, described, source_of
from scdgn.analysis.studies.results import TITLES, Results, grouped, read_all
from scdgn.cells.fields import Fields
from scdgn.cells.sources import Source
from scdgn.core.rejection import pooled
from scdgn.errors import DataError
from scdgn.model.bundle import Bundle
from scdgn.search.left_out import read, together
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings
from scdgn.search.summary import Summary
from tests.analysis.test_page import Parser
from tests.faults import SETTINGS, done, tiny
from tests.faults import run as run_command

SCRIPT = "<script>alert(1)</script>"
TYPES = ("B $x_1$", "NK & co", SCRIPT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies of nn and dann with a test batch, one with a query, and one that is not finished."""
    place = tmp_path_factory.mktemp("report")
    cells = {"a": 60, "b": 60, "c": 60, "out": 50}
    tiny(cells=cells, cell_types=TYPES).write_h5ad(place / "cells.h5ad")
    fields = Fields("celltype", "tech")
    source = Source(data=place / "cells.h5ad", fields=fields, test_batch="out")
    settings = StudySettings(
        name="blood", source=source, trials=2, confirm=1, confirm_seeds=1, final_seeds=2, space=SETTINGS,
        studies=place / "studies",
    )  # fmt: skip
    for method in ("nn", "dann"):
        run(replace(settings, name=f"blood/{method}", method=method), track=False)
    query = replace(source, test_batch=None, query="out")
    run(replace(settings, name="query", method="nn", source=query, trials=1, confirm=0), track=False)
    run(replace(settings, name="cut", method="nn"), track=False)
    (place / "studies/cut/summary.json").unlink()
    return place


@pytest.fixture(scope="module")
def results(place: Path) -> list[Results]:
    return read_all(place / "studies", ["blood"])[0]


@pytest.fixture(scope="module")
def page(place: Path) -> Path:
    """Of both studies, made by the command."""
    ran = done("report", "blood", "--studies", place / "studies")
    assert "report in" in ran.err
    return place / "studies/blood/report.html"


def test_the_page_says_first_what_came_out(page: Path, results: list[Results]) -> None:
    parsed = Parser(page.read_text(encoding="utf-8"))
    best = grouped(results)[0].best
    assert best.summary.model.score == max(one.summary.model.score for one in results)
    words = " ".join(parsed.text.split())
    lead = words[: words.index("Contents")]
    test = best.summary.final.test
    title = {"nn": "NN", "dann": "DANN"}[best.method]
    assert lead.index("Chosen: ") < lead.index("★") < lead.index("scdgn predict CELLS.h5ad --model ")
    assert f"An ensemble of 2 networks ({title})" in lead
    assert "Chosen among 4 trials of NN and DANN" in lead
    assert f"{test.cells} cells of out, which took no part in any choice" in lead
    summary = best.summary
    exported = summary.model.score, summary.exported_test.macro_f1, summary.winner.score
    seeds = (test.macro_f1.mean, test.macro_f1.std, test.macro_f1.ensemble)
    assert "".join(["★", title, *(f"{number:.3f}" for number in (*exported, *seeds))]) in lead


def test_each_number_says_whose_it_is(results: list[Results]) -> None:
    (group,) = grouped(results)
    frame = first_screen.scores(group).set_index("method")
    assert (frame["chosen"] == first_screen.STAR).sum() == 1
    for one in results:
        row = frame.loc[TITLES[one.method]]
        assert row["exported model, left out"] == one.summary.model.score
        assert row["exported model, test"] == one.summary.exported_test.macro_f1
        assert row["winner, left out"] == one.summary.winner.score
        assert row["winner, test"] == one.summary.final.test.macro_f1.mean
    left_out = frame["exported model, left out"]
    assert left_out[frame["chosen"] != ""].item() == left_out.max()


def test_settings_are_a_table(results: list[Results]) -> None:
    frame = first_screen.settings(grouped(results)[0]).set_index("setting")
    (nn,), (dann,) = ([name for name in frame if name.startswith(f"{title}, trial ")] for title in ("NN", "DANN"))
    assert frame.loc["hidden"].tolist() == ["8", "8"]
    assert frame.loc["domain_code", nn] == "" and frame.loc["domain_code", dann] == "4"
    assert sum(first_screen.STAR in name for name in frame) == 1


def test_all_trials_stand_on_one_page(results: list[Results]) -> None:
    found = searches.section(grouped(results)[0])
    assert found is not None
    (frame,) = (item.frame for item in found.items if isinstance(item, Table) and item.key == "all-trials")
    counts = frame["method"].value_counts()
    assert counts.to_dict() == {TITLES[one.method]: len(one.records) for one in results}
    assert frame.loc[frame["method"] == "NN", "lambda_max"].isna().all()
    assert searches.section(grouped(results[:1])[0]) is None


def test_progress_counts_all_that_will_be_made(place: Path, results: list[Results]) -> None:
    ran = done("report", "query", "-o", place / "progress", "--studies", place / "studies")
    steps = [line for line in ran.err.splitlines() if "/" in line.partition(" ")[0] and line[0].isdigit()]
    assert steps == [f"{number}/7 {step}" for number, step in enumerate(module.STEPS, 1)]
    told: list[str] = []
    others = [replace(one, name=f"more/{one.method}", summary=relabelled(one)) for one in results]
    compose([*results, *others], Asked(cells=False, say=told.append))
    assert told[:2] == ["1/2 search of blood", "2/2 search of more"]


def test_the_page_is_opened_on_request(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))
    words = ("report", "query", "--no-cells", "-o", place / "opened", "--studies", place / "studies")
    done(*words)
    assert opened == []
    done(*words, "--open")
    assert opened == [(place / "opened/report.html").resolve().as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    assert "there is no browser here" in done(*words, "--open").err


def test_the_start_told_is_that_of_the_first_study(results: list[Results]) -> None:
    early = "2026-01-02T03:04:05+00:00"
    later = [results[0], replace(results[1], made={**results[1].made, "created": early})]
    assert f"The first study began {early}" in compose(later, Asked(cells=False)).footer[0]


def test_the_page_is_whole(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = Parser(text)
    titles = [entry["id"] for entry in parsed.all("section")]
    for part in ("side-by-side", "the-search", "classification", "unknown", "encoders", "alignment", "genes"):
        assert any(part in str(title) for title in titles), part
    assert "Not shown" not in parsed.text and "missing:" not in parsed.text
    assert len(parsed.all("img")) >= 12
    assert len(parsed.all("script")) == 1 and SCRIPT in parsed.text
    for folder, endings in (("tables", {".csv", ".md", ".tex"}), ("figures", {".png", ".svg"})):
        files = [path for path in (page.parent / folder).iterdir() if path.stat().st_size]
        assert {path.suffix for path in files} == endings
    on_sheet = [place for place in parsed.all("div") if "sheet" in str(place.get("class"))]
    assert len(on_sheet) == len(list((page.parent / "figures").glob("*.svg")))
    for path in (page.parent / "figures").glob("*.svg"):
        assert "<script>" not in path.read_text(encoding="utf-8")
    assert page.stat().st_size < 5_000_000


def test_cells_are_those_of_the_study_and_scored_as_it_scored_them(results: list[Results]) -> None:
    for one in results:
        cells = described(one, source_of(one))
        counts = {name: int((cells.part == name).sum()) for name in (TRAINING, VALIDATION, TEST)}
        assert counts[TRAINING] + counts[VALIDATION] == 180 and counts[TEST] == 50
        assert 0 < counts[VALIDATION] <= one.summary.final.validation.cells
        test = cells.take((cells.part == TEST) & (cells.labels >= 0))
        exported = one.summary.exported_test
        assert exported is not None and float((test.predicted == test.labels).mean()) == exported.accuracy
        # The model has seen the training cells: what is said of them is said by models that were trained without.
        models = {part.trial: part.models for part in one.summary.model.parts}
        assert one.folder is not None
        kept = {number: read(one.folder.left_out(number)) or [] for number in models}
        model = one.summary.model
        predicted = {
            int(row): int(code)
            for part in together(kept, models)
            for row, code in zip(
                part.rows, pooled(part.as_predicted(model.corrects, model.moves).logits).argmax(dim=1), strict=True
            )
        }
        names = source_of(one).dataset.cells.tolist()
        said = cells.take(cells.part == VALIDATION)
        assert said.predicted.tolist() == [predicted[names.index(name)] for name in said.dataset.cells.tolist()]
        few = described(one, source_of(one), most=20)
        assert sorted(set(few.part)) == sorted({TRAINING, VALIDATION, TEST}) and len(few.part) == 60
        assert set(few.dataset.cells) <= set(cells.dataset.cells)


def test_test_cells_are_corrected_as_where_they_alone_are_predicted(
    results: list[Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("correction.LEAST_SURE", 5), ("correction.SURE", 0.0), ("correction.SURE_TOGETHER", 0.0),
        ("query_classifier.LEAST_SURE", 5), ("query_classifier.MOST_ALIKE", 1.0),
    ):  # fmt: skip
        monkeypatch.setattr(f"scdgn.core.{name}", value)
    one = results[0]
    assert one.folder is not None
    bundle = replace(Bundle.load(one.folder.model), corrects=True)
    monkeypatch.setattr(Bundle, "load", lambda path: bundle)
    source = source_of(one)
    query = source.dataset.take(source.split.test)
    correction = bundle.correction(query, lambda: [query])
    assert correction is not None and correction.classifiers
    cells = described(one, source)
    alone = bundle.probabilities(bundle.input(query, correction))
    np.testing.assert_allclose(cells.probabilities[cells.part == TEST], alone, atol=1e-6)
    assert by_type(cells, TEST).set_index("type")["training cells"].to_dict() == one.summary.data.cells_by_type


def test_other_cells_are_refused(results: list[Results], place: Path, tmp_path: Path) -> None:
    other = tiny(cells={"a": 60, "b": 60, "c": 60, "out": 50}, cell_types=TYPES)
    other.X.data[0] += 1
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(DataError, match="does not hold the cells that the study 'blood/dann' worked on"):
        source_of(results[0], tmp_path / "other.h5ad")
    (tmp_path / "same.h5ad").write_bytes((place / "cells.h5ad").read_bytes())
    assert len(source_of(results[0], tmp_path / "same.h5ad").dataset) == 230


def texts(results: list[Results], asked: Asked) -> Iterator[str]:
    for chapter in compose(results, asked).chapters:
        for section in chapter.sections:
            yield from (item.words for item in section.items if isinstance(item, Text))


def test_without_the_file_the_report_says_what_is_missing(results: list[Results], tmp_path: Path) -> None:
    words = " ".join(texts(results, Asked(data=tmp_path / "gone.h5ad")))
    assert "Pictures of cells, and what is computed from them, are missing" in words and "gone.h5ad" in words


def test_a_report_without_cells_still_tells_of_the_search(results: list[Results]) -> None:
    made = compose(results, Asked(cells=False), ["cut"])
    (chapter,) = made.chapters
    chosen = TITLES[grouped(results)[0].best.method]
    assert [section.title for section in chapter.sections] == ["The searches of all methods", f"The search: {chosen}"]
    kinds = {type(item) for section in (*made.overview, *chapter.sections) for item in section.items}
    assert kinds >= {Table, Picture}
    assert "Not finished, and left out: cut." in made.footer


def test_several_data_sets_are_summed_up(results: list[Results], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same studies once more under another name, as of other cells.
    others = [replace(one, name=f"more/{one.method}", summary=relabelled(one)) for one in results]
    made = compose([*results, *others], Asked(cells=False))
    assert [chapter.title for chapter in made.chapters] == ["blood", "more"]
    assert made.overview[0].title == "Selected models"
    mean = results[0].summary.final.test.macro_f1.mean
    assert any(f"NN {mean:.3f}" in item.words for item in made.lead)
    assert any("for 2" in item.words for item in made.lead)
    assert [section.title for section in made.chapters[0].sections[:2]] == ["Summary", "The settings"]


def relabelled(one: Results) -> Summary:
    data = replace(one.summary.data, fingerprint="another")
    return replace(one.search, study=f"more/{one.method}", data=data)


def test_a_study_with_a_query_has_no_test(place: Path) -> None:
    (one,), _ = read_all(place / "studies", ["query"])
    made = compose([one], Asked())
    assert any(item.words.startswith("No batch was held out") for item in made.lead if isinstance(item, Text))
    (scores,) = (item.frame for item in made.lead if isinstance(item, Table))
    assert scores.notna().all(axis=None) and not any("test" in name for name in scores)
    assert len(made.chapters[0].sections) >= 4


def test_what_cannot_be_reported_is_told(place: Path, tmp_path: Path) -> None:
    studies = place / "studies"
    for words, told in (
        (["cut"], "none of cut is finished"),
        (["nobody"], "there is no study 'nobody'"),
        (["blood", "query"], "say where to write the report with -o DIR"),
        (["blood", "-o", place / "cells.h5ad"], "choose another -o"),
    ):
        ran = run_command("report", *words, "--studies", studies, "--no-cells")
        assert ran.status == 2 and told in ran.err and "Traceback" not in ran.err


def test_a_fault_of_one_part_leaves_the_others(results: list[Results], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise DataError("no such thing")

    monkeypatch.setattr(module.classification, "section", broken)
    for name in ("unknown", "embedding", "integration", "genes"):
        monkeypatch.setattr(getattr(module, name), "section", lambda *_: None)
    monkeypatch.setattr(module.unknown, "compare", lambda *_: None)
    assert "Not shown: no such thing." in list(texts(results, Asked()))


def test_links_go_to_the_runs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Source(data=place / "cells.h5ad", fields=Fields("celltype", "tech"), test_batch="out")
    settings = StudySettings(
        name="tracked", method="nn", source=source, trials=1, confirm=0, final_seeds=1, space=SETTINGS,
        studies=tmp_path / "studies",
    )  # fmt: skip
    run(settings)
    (one,), _ = read_all(tmp_path / "studies", ["tracked"])
    (link,) = compose([one], Asked(cells=False)).links
    assert link.name == "tracked" and link.url.startswith("http://127.0.0.1:5000/#/experiments/")
    registered = json.loads((tmp_path / "studies/tracked/summary.json").read_text(encoding="utf-8"))["registered"]
    assert registered["version"] == "1"
    assert compose(read_all(place / "studies", ["blood"])[0], Asked(cells=False)).links == ()
