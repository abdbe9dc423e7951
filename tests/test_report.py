"""The report: tables beside the paper's, figures inside the page, nothing outside it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmser._extras import require
from lmser.experiments.results import Figure, Results, read_results, write_json
from lmser.experiments.tables import Cell, Row, Table
from lmser.report import collect, duration, render, write_report

pytest.importorskip("jinja2")

SVG = (
    '<svg viewBox="0 0 2 2" width="100%"><defs><path id="p" d="M 0 0"/></defs><g clip-path="url(#c)">'
    '<use href="#p" xlink:href="#p"/><image xlink:href="data:image/png;base64,AAAA"/></g>'
    '<clipPath id="c"><rect/></clipPath><text fill="currentColor">a curve</text></svg>'
)

TABLE = Table(
    title="Reconstruction, images in [-1, 1]",
    columns=("MSE", "seconds"),
    rows=(
        Row("CLmser", (Cell((0.004, 0.006), 0.0067), Cell((1.5,), digits=1)), "n = 100", "lr 0.002"),
        Row("CAE", (Cell((math.nan, 0.09), 0.0782), Cell(())), "n = 100"),
        Row("CLmser", (Cell((0.5,)), Cell((2.0,), digits=1)), "n = 10"),
    ),
    source="001 Table 4",
    notes=("A note <b>not bold</b>.",),
)

RESULTS = Results(
    experiment="stl10-reconstruction",
    title="A title & more",
    summary="A summary.",
    scale="paper",
    seeds=(0, 1),
    tables=(TABLE,),
    figures=(Figure("figures/loss.svg", "Curves", "As 001 Fig. 6.", "Error over steps"),),
    seconds=4000.0,
    machine={"device": "cpu", "threads": "2", "commit": "0123456789ab"},
    data={"data": "STL10"},
    notes=("A finding.",),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "loss.svg").write_text(SVG)
    RESULTS.write(tmp_path)
    return tmp_path


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        for name, value in attributes:
            assert not name.startswith("on"), f"{tag} runs {name}"
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


# Tables.


def test_a_cell_says_mean_deviation_and_difference() -> None:
    cell = Cell((0.004, 0.006), 0.0067)
    assert cell.mean == pytest.approx(0.005)
    assert cell.deviation == pytest.approx(0.001 * math.sqrt(2))
    assert cell.ours_text() == "0.0050 ± 0.0014"
    assert (cell.paper_text(), cell.difference_text()) == ("0.0067", "\u22120.0017")
    assert Cell((2.0,), 1.0, digits=1).difference_text() == "+1.0"
    assert Cell((2.0,), digits=1).ours_text() == "2.0"


def test_a_cell_says_what_is_missing_or_diverged() -> None:
    assert Cell(()).ours_text() == Cell(()).paper_text() == Cell((1.0,)).difference_text() == "\u2013"
    assert Cell((math.nan,), 1.0).ours_text() == "diverged"
    half = Cell((math.nan, 1.0), 1.0)
    assert half.ours_text() == "diverged (1 of 2)"
    assert half.difference is None
    assert half.deviation is None


def test_a_table_survives_the_file() -> None:
    again = Table.from_json(json.loads(json.dumps(TABLE.to_json(), allow_nan=False)))
    assert json.dumps(again.to_json()) == json.dumps(TABLE.to_json())
    assert again.text() == TABLE.text()
    assert math.isnan(again.rows[1].cells[0].ours[0])


def test_a_table_for_the_terminal_is_aligned_and_complete() -> None:
    lines = TABLE.text().splitlines()
    assert lines[0] == "Reconstruction, images in [-1, 1] (beside 001 Table 4)"
    assert lines[1].split() == ["model", "MSE", "paper", "difference", "seconds"]
    assert len(lines[2]) == len(lines[1])
    assert lines[3] == "n = 100"
    assert lines[4].split() == ["CLmser", "0.0050", "±", "0.0014", "0.0067", "\u22120.0017", "1.5"]
    assert "diverged (1 of 2)" in lines[5]
    assert "  n = 100 CLmser: lr 0.002" in lines
    assert lines[-1] == TABLE.notes[0]


def test_a_setting_that_all_rows_share_is_said_once() -> None:
    rows = tuple(dataclasses.replace(row, differs="quick scale") for row in TABLE.rows)
    table = dataclasses.replace(TABLE, rows=rows)
    assert table.common_difference == "quick scale"
    assert table.text().count("quick scale") == 1
    assert TABLE.common_difference is None
    assert dataclasses.replace(TABLE, rows=TABLE.rows[1:]).common_difference == ""


def test_order_ranks_a_group_with_the_diverged_last() -> None:
    assert TABLE.order(0, "n = 100") == "CLmser 0.0050 < CAE diverged"
    assert TABLE.mean(0, "CLmser", "n = 10") == 0.5
    with pytest.raises(ValueError, match="no row 'AE'"):
        TABLE.mean(0, "AE")


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="row 'CAE' has 1 cells for 2 columns"):
        Table("t", ("a", "b"), (Row("CAE", (Cell(()),)),))


# Results files.


def test_results_survive_the_file(folder: Path) -> None:
    again = read_results(folder / "results.json")
    assert dataclasses.replace(again, tables=RESULTS.tables) == RESULTS
    assert [table.text() for table in again.tables] == [TABLE.text()]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "was not written by lmser"),
        ('{"format": "something else"}', "something else"),
        ('{"format": "lmser results 1"}', "damaged.*seconds"),
        ('{"format": "lmser results 1", "seconds": NaN}', "damaged"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as raised:
        read_results(path)
    assert str(path) in str(raised.value)


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


# The page.


def test_the_page_shows_paper_ours_difference_and_settings(folder: Path) -> None:
    page = Page(write_report(folder / "r.html", collect(folder), title="T", introduction="I").read_text())
    cells = [cell.strip() for cell in page.cells]
    start = cells.index("CLmser")
    assert cells[start : start + 6] == [
        "CLmser",
        "0.0067",
        "0.0050 ± 0.0014",
        "\u22120.0017",
        "1.5",
        "lr 0.002",
    ]
    assert {"paper", "ours", "difference", "settings that differ", "n = 100", "n = 10"} <= set(cells)
    assert "none" in cells  # a row that differs in nothing, beside one that does
    assert "diverged (1 of 2)" in cells


def test_the_page_says_where_it_ran_and_how_long(folder: Path) -> None:
    text = render(collect(folder), title="T", introduction="I")
    for fact in ("1 h 6 min", "0123456789ab", "seeds 0, 1", "paper scale", "STL10", "A finding."):
        assert fact in text
    assert "A title &amp; more" in text
    assert "A note &lt;b&gt;not bold&lt;/b&gt;." in text
    assert "mean ± standard deviation over 2 seeds" in text


def test_the_page_is_self_contained_and_responsive(folder: Path) -> None:
    text = render(collect(folder), title="T", introduction="I")
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert "@import" not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "overflow-x: auto" in text


def test_figures_of_several_experiments_do_not_share_ids(folder: Path, tmp_path: Path) -> None:
    text = render([(folder, RESULTS), (folder, RESULTS)], title="T", introduction="I")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for target in re.findall(r'(?:href="|url\()#([^")]+)', text):
        assert target in page.ids
    assert text.count("a curve") == 2
    assert "experiment-2" in page.ids


def test_the_page_is_the_same_every_time(folder: Path) -> None:
    found = collect(folder)
    assert render(found, title="T", introduction="I") == render(found, title="T", introduction="I")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (SVG[:-6], "whole SVG"),
        ("not a figure", "whole SVG"),
        (SVG.replace("<g ", "<script>alert(1)</script><g "), "script"),
        (SVG.replace("<g ", '<g onload="alert(1)" '), "onload"),
        (SVG.replace('href="#p"', 'href="https://example.org/x"'), "self-contained"),
        (SVG.replace("url(#c)", "url(https://example.org/c)"), "self-contained"),
        (SVG.replace("data:image/png", "data:text/html"), "self-contained"),
    ],
)
def test_figures_that_are_broken_or_reach_outside_are_refused(
    folder: Path, content: str, complaint: str
) -> None:
    (folder / "figures" / "loss.svg").write_text(content)
    with pytest.raises(ValueError, match=complaint):
        write_report(folder / "report.html", collect(folder), title="T", introduction="I")
    assert not (folder / "report.html").exists()


def test_figures_that_are_missing_or_elsewhere_are_refused(folder: Path) -> None:
    (folder / "figures" / "loss.svg").unlink()
    with pytest.raises(FileNotFoundError, match=r"loss\.svg is missing.*--resume"):
        render(collect(folder), title="T", introduction="I")
    outside = dataclasses.replace(RESULTS, figures=(Figure("../x.svg", "t", "c", "a"),))
    with pytest.raises(ValueError, match="outside"):
        render([(folder, outside)], title="T", introduction="I")


def test_collect_finds_all_below_in_order(folder: Path) -> None:
    (folder / "b").mkdir()
    RESULTS.write(folder / "b")
    assert [path for path, _ in collect(folder)] == [folder / "b", folder]
    with pytest.raises(FileNotFoundError, match="no folder"):
        collect(folder / "nowhere")
    (folder / "figures" / "x").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no results\.json"):
        collect(folder / "figures" / "x")


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (0.4, 59.4, 61, 3599.6, 7260)] == [
        "0 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 1 min",
    ]  # fmt: skip


# Optional dependencies.


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(ImportError, match=r"pip install 'lmser\[experiments\]'") as raised:
        require("not_a_module_anywhere.inside")
    assert raised.value.name == "not_a_module_anywhere"
    with pytest.raises(ImportError, match=r"lmser\[other\]"):
        require("not_a_module_anywhere", extra="other")
    assert require("os.path").join("a", "b") == str(Path("a") / "b")


def test_a_module_that_is_there_but_broken_speaks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_by_its_dependency.py").write_text("import not_a_module_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_a_module_anywhere'"):
        require("broken_by_its_dependency")
