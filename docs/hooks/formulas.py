"""Formulas of the pages as MathML, made when the site is built: nothing is fetched, and no script runs in the browser.

`$...$` and `$$...$$` are found by pymdownx.arithmatex; LaTeX that cannot be read fails the build.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_FOUND = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.+?)\\[)\]]</\1>', flags=re.DOTALL)


def _mathml(match: re.Match[str]) -> str:
    tag, latex = match.group(1), unescape(match.group(2))
    made = convert(latex.strip(), display="block" if tag == "div" else "inline")
    return f'<{tag} class="formula">{made}</{tag}>'


def on_page_content(html: str, **_: Any) -> str:
    """The page's HTML with its formulas."""
    return _FOUND.sub(_mathml, html)
