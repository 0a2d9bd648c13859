"""Reports as HTML: the Markdown's content, nothing that is loaded, and no name that is run."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.evaluation.page import html_page
from kd_pipeline.evaluation.report import markdown_report

PNG = b"\x89PNG\r\n\x1a\n of a figure"
TABLE = """# Which?

| arm | accuracy % | p | note | group |
| --- | ---: | ---: | --- | --- |
| b | 9.50 ± 0.10 | < 0.001 | | 20261130-2 |
| c | 10.00 ± 0.20 | - | 2 of 5 | 20261130-1 |
| a | 1,000.00 | 0.974 | ten | 20261130-3 |
"""
CHROMIUM = shutil.which("chromium")


class Reader(HTMLParser):
    """Elements with their attributes, and the text of each kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.setdefault(self.elements[-1][0], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


def test_every_section_and_number_of_the_report_is_on_the_page(result: Any) -> None:
    markdown = markdown_report(result.comparison)
    page = Reader(html_page(markdown, {}))
    assert page.text["title"] == page.text["h1"] == ["Did distillation help?"]
    assert page.text["h2"] == re.findall(r"^## (.*)$", markdown, flags=re.MULTILINE)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [
        cell for row in rows if set(row) - set("| -:") for cell in row.strip("| ").split(" | ")
    ]
    assert sorted(page.text["th"] + page.text["td"]) == sorted(filter(None, cells))


def test_figures_are_inside_and_named(result: Any) -> None:
    markdown = markdown_report(result.comparison)
    paths = re.findall(r"\]\((figures/[^)]*)\)", markdown)
    page = Reader(html_page(markdown, dict.fromkeys(paths, PNG)))
    assert len(paths) == 4
    source = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert [image["src"] for image in page.all("img")] == [source] * 4
    assert page.all("img")[1]["alt"] == "Calibration"


def test_a_figure_that_is_not_given_is_not_loaded() -> None:
    page = html_page("# A\n\n![a figure](https://example.org/a.png)\n", {})
    assert "example.org" not in page
    assert not Reader(page).all("img")
    assert "a figure" in Reader(page).text["p"]


NAMES = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "</main></body><iframe src='https://example.org'>",
    "![x](javascript:alert(1))",
    "[x](javascript:alert(1))",
    "![x](x.png 'a\" onload=\"alert(1)')",
    "<!-- -->&lt;b&gt;",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_class_or_file_is_text(name: str) -> None:
    markdown = f"# Report\n\n{name}\n\n| class | gain |\n| --- | ---: |\n| {name} | +1.00 |\n"
    plain = Reader(html_page(markdown.replace(name, "name"), {}))
    page = Reader(html_page(markdown, {}))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    attributes = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in attributes if name.startswith("on")}


def test_a_name_in_the_title_or_under_a_figure_is_text() -> None:
    markdown = "# <script>a</script>\n\n![<b onload=x>](figures/a.png)\n"
    page = html_page(markdown, {"figures/a.png": PNG})
    assert len(Reader(page).all("script")) == 1
    assert Reader(page).all("img")[0]["alt"] == "<b onload=x>"
    assert not Reader(page).all("b")


def test_the_page_forbids_whatever_is_not_its_own() -> None:
    """Nothing is loaded; a script or a style runs only where its digest is the page's own."""
    page = html_page(TABLE, {})
    policy = Reader(page).all("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        (own,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.findall(r"(?:src|href|url\()\W*https?:", page)
    assert not any("style" in attributes for _, attributes in Reader(page).elements)


def test_tables_scroll_by_themselves_and_numbers_are_aligned() -> None:
    page = Reader(html_page(TABLE, {}))
    (box,) = page.all("div")
    assert (box["class"], box["tabindex"], box["role"]) == ("table", "0", "region")
    assert [head.get("class") for head in page.all("th")] == [None, "number", "number", None, None]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_sorts_numbers_as_numbers_and_what_is_missing_last(tmp_path: Path) -> None:
    clicks = """<script>
    const found = [], head = document.querySelector("tr").cells;
    const rows = document.querySelector("tbody").rows;
    for (const column of [0, 1, 1, 2, 3, 4]) {
      head[column].querySelector("button").click();
      found.push(head[column].ariaSort + " " + [...rows].map(r => r.cells[0].textContent).join(""));
    }
    document.title = found.join(", ");
    </script>"""
    page = re.sub("<meta http-equiv[^>]*>", "", html_page(TABLE, {}))
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{clicks}</body>"))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path}/profile", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(
        [str(CHROMIUM), *options], capture_output=True, text=True, timeout=60, check=True
    )
    (title,) = re.findall("<title>(.*)</title>", done.stdout)
    assert title.split(", ") == [
        "ascending abc",
        "ascending bca",
        "descending acb",
        "ascending bac",
        "ascending cab",
        "ascending cba",
    ]
