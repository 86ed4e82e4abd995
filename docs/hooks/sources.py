"""Files of the repository that pages link to, as its pages: `../torchimpt/x.py` is true in the repository, and leads somewhere here.

A link to what is not there stays as it is, which a strict build refuses.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".sh": "sh", ".md": "markdown", ".ipynb": "python"}
MOST = 200_000
"""Bytes of a file beyond which its page says only how large it is."""

_LINK = re.compile(r"(?<!!)(\[[^\]]*\]\()((?:\.\./)+)([^)#\s]+)(\))")


def _page_of(path: str) -> str:
    return f"source/{path.rstrip('/')}.md"


def _linked(text: str, folder: str) -> list[str]:
    """What a page links to outside the folder of the pages, relative to the repository."""
    found = []
    for _, up, path, _ in _LINK.findall(text):
        whole = os.path.normpath(os.path.join("docs", folder, up + path))
        if not whole.startswith(("docs/", "..")) and (ROOT / whole).exists():
            found.append(whole)
    return found


def _cells(notebook: Path) -> str:
    """A notebook as a script, its text as comments."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "code" else "\n".join(f"# {line}".rstrip() for line in text.splitlines()))
    return "\n\n".join(parts)


def _content(path: str) -> str:
    file, top = ROOT / path, f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if file.is_dir():
        return top + "".join(f"- `{child.name}`\n" for child in sorted(file.iterdir()) if child.name != "__pycache__")
    if (file.suffix not in LANGUAGES and file.name != "LICENSE") or file.stat().st_size > MOST:
        return top + f"{file.stat().st_size:,} bytes, in the repository.\n"
    if file.suffix == ".ipynb":
        return top + f"~~~~~~python\n{_cells(file)}\n~~~~~~\n"
    return top + f"~~~~~~{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n~~~~~~\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of linked files beside those that are written."""
    for page in list(files.documentation_pages()):
        for path in _linked(page.content_string, os.path.dirname(page.src_uri)):
            if files.get_file_from_path(_page_of(path)) is None:
                files.append(File.generated(config, _page_of(path), content=_content(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links led to those pages."""
    folder = os.path.dirname(page.file.src_uri)

    def lead(match: re.Match[str]) -> str:
        before, up, path, after = match.groups()
        there = _linked(match.group(0), folder)
        return before + (os.path.relpath(_page_of(there[0]), folder or ".") if there else up + path) + after

    return markdown if folder.startswith("source") else _LINK.sub(lead, markdown)
