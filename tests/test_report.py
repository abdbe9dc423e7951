"""The report: tables beside the paper's, figures inside the page, nothing outside it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lmser._extras import require
from lmser.experiments.results import Claim, Figure, Results, read_results, write_json
from lmser.experiments.tables import Cell, Row, Table
from lmser.report import collect, duration, missing_figures, render, write_report
from lmser.report_figures import LARGE, embed

pytest.importorskip("jinja2")
Image = pytest.importorskip("PIL.Image")

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
    claims=(
        Claim("CLmser performs best", "001 Sect. 5.1", True, "MSE: CLmser 0.005 < CAE 0.09"),
        Claim("CLmser performs best", "001 Sect. 5.1", False, "tuned, MSE: CAE 0.01 & less < CLmser 0.02"),
        Claim("DCW gains less than DPN", "001 Sect. 5.4", False, "by DCW 14.0 times, by DPN 12.1 times"),
    ),
    times={"as-printed/CLmser": 3725.0, "as-printed/CAE": 42.0},
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
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.elements.append((tag, dict(attributes)))
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
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def having(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        """The attributes of every such element that has the wanted ones."""
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]


# Tables.


def test_a_cell_says_mean_deviation_and_difference() -> None:
    cell = Cell((0.004, 0.006), 0.0067)
    assert cell.mean == pytest.approx(0.005)
    assert cell.deviation == pytest.approx(0.001 * math.sqrt(2))
    assert cell.ours_text() == "0.0050 ± 0.0014"
    assert (cell.paper_text(), cell.difference_text()) == ("0.0067", "\u22120.0017")
    assert Cell((2.0,), 1.0, digits=1).difference_text() == "+1.0"
    assert Cell((2.0,), digits=1).ours_text() == "2.0"
    # What rounds to nothing has no sign.
    assert Cell((0.01999,), 0.02).difference_text() == Cell((0.02001,), 0.02).difference_text() == "0.0000"


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

SAVED = {
    **dict.fromkeys(("experiment", "title", "summary", "scale"), ""),
    **{key: [] for key in ("seeds", "tables", "figures", "notes")},
    "format": "lmser results 1",
    "seconds": 1.0,
    "machine": {},
    "data": {},
}


def test_results_without_claims_and_times_are_read(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(SAVED))
    assert read_results(tmp_path / "results.json").claims == ()
    assert read_results(tmp_path / "results.json").times == {}


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
        ('{"format": "lmser results 1"}', "damaged.*experiment"),
        ('{"format": "lmser results 1", "seconds": NaN}', "damaged"),
        (json.dumps({**SAVED, "claims": [{"text": "a claim"}]}), "damaged.*confirmed"),
        (json.dumps({**SAVED, "times": [1.0]}), "damaged"),
        (json.dumps({**SAVED, "times": {"AE": math.inf}}), "damaged.*inf"),
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
    start = cells.index("CLmsera")  # the letter leads to what differs
    assert cells[start + 1 : start + 5] == ["0.0067", "0.0050 ± 0.0014", "\u22120.0017", "1.5"]
    assert {"paper", "ours", "difference", "n = 100", "n = 10"} <= set(cells)
    assert {"CAE", "CLmser"} <= set(cells)  # rows that differ in nothing
    assert "diverged (1 of 2)" in cells


def differing(*texts: str) -> Results:
    rows = tuple(Row(str(i), (Cell((1.0,), 1.0),), differs=text) for i, text in enumerate(texts))
    return dataclasses.replace(RESULTS, tables=(Table("A table", ("MSE",), rows),), figures=())


def footnotes(results: Results) -> tuple[str, list[tuple[str, str]]]:
    """What the page says of all rows, and letter and words of the others."""
    text = render([(Path(), results)], title="T", introduction="I")
    Page(text)
    common = re.search("Settings that differ from the paper\u2019s(.*?)</p>", text)
    assert common
    return common.group(1), re.findall(r'<dt id="experiment-1-table-1-\w+">(.*?)</dt><dd>(.*?)</dd>', text)


def test_settings_that_rows_share_are_said_once() -> None:
    common = "60 steps (paper: 50, 100), stand-in data"
    shared = differing(common, f"lr 0.002, {common}", common, f"lr 0.002, {common}", f"{common}, k = 2")
    assert footnotes(shared) == (f", in every row: {common}.", [("a", "lr 0.002"), ("b", "k = 2")])
    text = render([(Path(), shared)], title="T", introduction="I")
    links = re.findall(r'scope="row">.*?>(\d)(?:<sup><a href="#experiment-1-table-1-(\w)")?', text)
    assert links == [("0", ""), ("1", "a"), ("2", ""), ("3", "a"), ("4", "b")]
    assert footnotes(differing(common, common)) == (f": {common}.", [])
    assert footnotes(differing("", "")) == (": none.", [])
    assert footnotes(differing("", "lr 0.1")) == (":", [("a", "lr 0.1")])


def test_letters_do_not_run_out() -> None:
    letters = [letter for letter, _ in footnotes(differing(*(f"lr 0.{i}" for i in range(30))))[1]]
    assert letters[0] == "a"
    assert letters[25:28] == ["z", "aa", "ab"]
    assert len(set(letters)) == 30


def test_claims_are_marked_in_words_with_their_evidence(folder: Path) -> None:
    text = render(collect(folder), title="T", introduction="I")
    Page(text)
    claims = text[text.index('id="claims"') : text.index('id="experiment-1"')]
    assert "0 of 2 claims confirmed in every test" in claims
    assert re.search(
        r"◐ confirmed in part</span> <h3>CLmser performs best .*001 Sect. 5.1; 1 of 2 tests", claims
    )
    assert re.search(r"✗ not confirmed</span> <h3>DCW gains less than DPN .*001 Sect. 5.4<", claims)
    assert "✓ confirmed</span> <p>MSE: CLmser 0.005 &lt; CAE 0.09</p>" in claims
    assert "✗ not confirmed</span> <p>tuned, MSE: CAE 0.01 &amp; less &lt; CLmser 0.02</p>" in claims
    assert "1 of 3 tests" in text
    without = render([(folder, dataclasses.replace(RESULTS, claims=()))], title="T", introduction="I")
    assert "claims" not in Page(without).ids


def test_a_claim_tested_in_several_places_links_to_each(folder: Path) -> None:
    held = dataclasses.replace(RESULTS, scale="quick", claims=RESULTS.claims[:1])
    text = render([(folder, RESULTS), (folder, held)], title="T", introduction="I")
    claims = text[text.index('id="claims"') : text.index('id="experiment-1"')]
    assert claims.count("<h3>CLmser performs best") == 1
    assert "; 2 of 3 tests" in claims
    assert re.findall(r'href="#(.*?)">(.*?)</a>', claims) == [
        ("experiment-1", "A title &amp; more, paper scale"),
        ("experiment-2", "A title &amp; more, quick scale"),
        ("experiment-1", "A title &amp; more, paper scale"),
    ]
    assert "<details open>" in claims
    many = dataclasses.replace(RESULTS, claims=RESULTS.claims * 5)
    text = render([(folder, many)], title="T", introduction="I")
    assert "<details open>" not in text[text.index('id="claims"') : text.index('id="experiment-1"')]


def test_the_overview_lists_every_result(folder: Path, tmp_path: Path) -> None:
    runs = [(tmp_path / "a", RESULTS), (tmp_path / "b", RESULTS)]
    runs += [(tmp_path / "c", dataclasses.replace(RESULTS, experiment="else", scale="quick", claims=()))]
    page = Page(render(runs, title="T", introduction="I"))
    cells = [cell.strip() for cell in page.cells]
    common = ["001 Table 4, Figs. 5 and 6", "paper", "0, 1", "1 of 3", "1 h 6 min", "cpu, 2 threads"]
    for name in "ab":
        start = cells.index(f"A title & more, paper scale ({name})stl10-reconstruction")
        assert cells[start + 1 : start + 7] == common
    start = cells.index("A title & more, quick scaleelse")
    assert cells[start + 1 : start + 7] == [
        "001 Table 4",
        "quick",
        "0, 1",
        "\u2013",
        "1 h 6 min",
        "cpu, 2 threads",
    ]
    assert {f"#experiment-{i}" for i in (1, 2, 3)} <= set(page.links)
    gpu = dataclasses.replace(RESULTS, machine={"device": "a GPU (cuda:0)", "processor": "a CPU"})
    assert '<td class="words">a GPU (cuda:0)</td>' in render(
        [*runs, (folder, gpu)], title="T", introduction="I"
    )


def test_every_title_is_one_of_its_own(folder: Path, tmp_path: Path) -> None:
    quick = dataclasses.replace(RESULTS, scale="quick")
    text = render(
        [(tmp_path / "x/y", RESULTS), (tmp_path / "x/z", RESULTS), (tmp_path, quick)],
        title="T",
        introduction="I",
    )
    assert re.findall(r"<h2 id=\"experiment.*?>(.*?)</h2>", text) == [
        "A title &amp; more, paper scale (x/y)",
        "A title &amp; more, paper scale (x/z)",
        "A title &amp; more, quick scale",
    ]
    assert text.count("Quick scale: cut down") == 1
    alone = render([(folder, RESULTS)], title=RESULTS.title, introduction="I")
    assert re.findall(r"<h2 id=\"experiment.*?>(.*?)</h2>", alone) == ["Results"]
    assert 'id="overview"' not in alone


def test_the_page_says_where_it_ran_and_how_long(folder: Path) -> None:
    text = render(collect(folder), title="T", introduction="I")
    for fact in ("1 h 6 min", "0123456789ab", "seeds 0, 1", "paper scale", "STL10", "A finding."):
        assert fact in text
    assert "<code>lmser run stl10-reconstruction --scale paper --seeds 0,1</code>" in text
    assert "<dt>as-printed/CLmser</dt><dd>1 h 2 min</dd>" in text
    assert "<dt>as-printed/CAE</dt><dd>42 s</dd>" in text
    assert "001: <cite>Deep CNN based Lmser and strengths of two built-in dualities</cite>" in text
    assert "000:" not in text  # nothing on the page comes from that paper
    demo = dataclasses.replace(RESULTS, experiment="demo")
    assert "<code>lmser demo</code>" in render([(folder, demo)], title="T", introduction="I")
    assert "A title &amp; more" in text
    assert "A note &lt;b&gt;not bold&lt;/b&gt;." in text
    assert "Mean ± standard deviation over 2 seeds" in text


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
    assert "@media print" in text


def test_the_page_can_be_read_without_seeing_it(folder: Path) -> None:
    text = render([(folder, RESULTS), (folder, RESULTS)], title="T", introduction="I")
    page = Page(text)
    assert {tag: page.tags.count(tag) for tag in ("header", "main", "nav", "footer", "h1")} == dict.fromkeys(
        ("header", "main", "nav", "footer", "h1"), 1
    )
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False))
    assert all(
        attributes.get("scope") in ("col", "row", "colgroup", "rowgroup") for attributes in page.having("th")
    )
    assert (
        page.tags.count("caption") == page.tags.count("table") - 1
    )  # the overview is labelled by its heading
    frames = page.having("div", role="region")
    assert len(frames) == page.tags.count("table") + page.tags.count("svg")
    assert all(frame["tabindex"] == "0" for frame in frames)
    labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(labels) <= set(page.ids)
    assert len(page.having("svg", role="img", **{"aria-label": "Error over steps"})) == 2


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


def test_figures_that_are_not_there_are_named_and_those_elsewhere_refused(folder: Path) -> None:
    assert missing_figures(collect(folder)) == []
    assert "Not shown" not in render(collect(folder), title="T", introduction="I")
    (folder / "figures" / "loss.svg").unlink()
    assert missing_figures(collect(folder)) == [folder / "figures" / "loss.svg"]
    text = render(collect(folder), title="T", introduction="I")
    assert "Not shown" in text
    assert "Curves (<code>figures/loss.svg</code>). As 001 Fig. 6." in text
    outside = dataclasses.replace(RESULTS, figures=(Figure("../x.svg", "t", "c", "a"),))
    with pytest.raises(ValueError, match="outside"):
        render([(folder, outside)], title="T", introduction="I")


def test_many_figures_are_folded(folder: Path) -> None:
    for count, folded in ((4, 0), (5, 5)):
        several = dataclasses.replace(RESULTS, figures=RESULTS.figures * count, claims=(), times={})
        page = Page(render([(folder, several)], title="T", introduction="I"))
        assert page.tags.count("svg") == count
        assert page.tags.count("details") == folded
    assert len(page.having("details", open="")) == 0  # written without a value
    assert sum("open" in attributes for attributes in page.having("details")) == 1


def picture(side: int, seed: int = 0) -> bytes:
    """A photograph, as far as its size goes: smooth, with noise, one row transparent."""
    generator = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    waves = [np.sin(across / generator.uniform(3, 20) + down / generator.uniform(3, 20)) for _ in range(3)]
    values = 128 + 70 * np.stack(waves, 2) + generator.normal(0, 4, (side, side, 1))
    alpha = np.full((side, side, 1), 255.0)
    alpha[0] = 0
    pixels = np.concatenate([values, alpha], 2).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def with_pictures(folder: Path, name: str, pictures: list[bytes]) -> Figure:
    addresses = [base64.b64encode(content).decode() for content in pictures]
    images = "".join(f'<image xlink:href="data:image/png;base64,\n{address}"/>' for address in addresses)
    (folder / "figures" / name).write_text(f'<svg viewBox="0 0 300 100">{images}</svg>')
    return Figure(f"figures/{name}", "Pictures", "As 001 Fig. 5.", 'Columns: "a" & b')


def test_large_pictures_are_packed_and_small_ones_left(folder: Path) -> None:
    large, small = picture(224), picture(32)
    assert len(small) < LARGE < len(large)
    svg, packed = embed(folder, with_pictures(folder, "p.svg", [large, small]), "e1")
    assert packed
    kinds, contents = zip(*re.findall(r"data:image/(\w+);base64,\s*([^\"]+)", svg), strict=True)
    assert kinds == ("webp", "png")
    assert base64.b64decode(contents[1]) == small
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(contents[0]))).convert("RGBA"), dtype=float)
    before = np.asarray(Image.open(io.BytesIO(large)), dtype=float)
    assert np.array_equal(again[..., 3], before[..., 3])
    assert np.abs(again[1:, :, :3] - before[1:, :, :3]).mean() < 4  # of 255
    shown = dataclasses.replace(RESULTS, figures=(with_pictures(folder, "p.svg", [large]),))
    assert "packed as WebP of quality 90" in render([(folder, shown)], title="T", introduction="I")
    assert "WebP" not in render([(folder, RESULTS)], title="T", introduction="I")


def test_a_figure_is_limited_in_width_and_says_what_it_shows(folder: Path) -> None:
    svg, packed = embed(folder, with_pictures(folder, "p.svg", []), "e1")
    assert not packed
    assert svg.startswith(
        '<svg role="img" aria-label="Columns: &quot;a&quot; &amp; b" '
        'style="min-width: 260px; max-width: 440px" viewBox="0 0 300 100"'
    )


def test_a_page_of_many_figures_stays_small(folder: Path) -> None:
    strips = [picture(224, seed) for seed in range(4)]
    figures = tuple(with_pictures(folder, f"p{i}.svg", strips) for i in range(6))
    written = sum((folder / figure.file).stat().st_size for figure in figures)
    page = write_report(
        folder / "r.html",
        [(folder, dataclasses.replace(RESULTS, figures=figures))],
        title="T",
        introduction="I",
    )
    assert written > 2.5e6
    assert page.stat().st_size < 0.8e6


def test_a_picture_that_cannot_be_read_is_refused(folder: Path) -> None:
    for broken in (b"no picture" * LARGE, picture(224)[: LARGE + 1]):
        figure = with_pictures(folder, "p.svg", [broken])
        with pytest.raises(ValueError, match=r"p\.svg holds a picture that cannot be read"):
            embed(folder, figure, "e1")
    (folder / "figures" / "p.svg").write_text('<svg><image href="data:image/png;base64,%"/></svg>')
    with pytest.raises(ValueError, match=r"p\.svg holds a picture that cannot be read"):
        embed(folder, figure, "e1")
    (folder / "figures" / "p.svg").write_bytes(b"<svg>\xff</svg>")
    with pytest.raises(ValueError, match=r"p\.svg is not a whole SVG"):
        embed(folder, figure, "e1")


def test_collect_finds_all_below_in_order(folder: Path) -> None:
    names = ["mnist-reconstruction", "stl10-reconstruction", "unknown"]
    for name, scale in ((names[2], "demo"), (names[1], "quick"), (names[0], "quick"), (names[1], "paper")):
        (folder / f"{name}-{scale}").mkdir()
        dataclasses.replace(RESULTS, experiment=name, scale=scale).write(folder / f"{name}-{scale}")
    assert [path for path, _ in collect(folder)] == [
        folder / "mnist-reconstruction-quick",
        folder,
        folder / "stl10-reconstruction-paper",
        folder / "stl10-reconstruction-quick",
        folder / "unknown-demo",
    ]
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
