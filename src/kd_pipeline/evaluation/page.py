"""Reports as single HTML files: converted from Markdown, figures inside, tables that sort."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}</main>
<script>{script}</script>
</body>
</html>
"""


def html_page(markdown: str, figures: Mapping[str, bytes]) -> str:
    """Convert a report to one HTML file that requests nothing.

    HTML in the Markdown is shown as text. The browser is forbidden to load anything and to run any
    other script than this page's own, so that no name of a class or file can do either.

    Args:
        markdown: With a first-level heading, the page's title.
        figures: PNG files, by the paths that the Markdown has. Any other image is left out, and
            its title shown.
    """
    converter = MarkdownIt("commonmark", {"html": False}).enable("table")
    for name, rule in _RULES.items():
        converter.add_render_rule(name, rule)
    tokens = converter.parse(markdown)
    _mark_numbers(tokens)
    body = converter.renderer.render(tokens, converter.options, {"figures": figures})
    style, script = _read("page.css"), _read("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    title = next((tokens[at + 1].content for at, t in enumerate(tokens) if t.tag == "h1"), "Report")
    return _PAGE.format(policy=policy, title=escape(title), style=style, body=body, script=script)


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a content security policy names a text that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _mark_numbers(tokens: Sequence[Token]) -> None:
    """Give right-aligned cells a class in place of a style, which the policy forbids."""
    for token in tokens:
        if token.type in ("th_open", "td_open"):
            token.attrs = {"class": "number"} if "right" in str(token.attrs) else {}


def _table_open(*_: Any) -> str:
    # Scrolls in its own box, which the keyboard reaches.
    return '<div class="table" role="region" aria-label="Table" tabindex="0"><table>\n'


def _table_close(*_: Any) -> str:
    return "</table></div>\n"


def _image(
    _renderer: Any, tokens: Sequence[Token], at: int, _options: Any, env: Mapping[str, Any]
) -> str:
    title, figure = escape(tokens[at].content), env["figures"].get(tokens[at].attrGet("src"))
    if figure is None:
        return title
    source = f"data:image/png;base64,{base64.b64encode(figure).decode()}"
    return (
        f'<span class="figure"><span aria-hidden="true">{title}</span>'
        f'<img alt="{title}" src="{source}"></span>'
    )


_RULES = {"table_open": _table_open, "table_close": _table_close, "image": _image}
