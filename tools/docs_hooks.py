"""The site has the pages outside of docs/, too, which those in it lead to."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# By their place in the repository; docs/README.md is the site's front page, so the other is not.
OUTSIDE = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
_PLACES = {there: here for here, there in OUTSIDE.items()}
_LINK = re.compile(r"\]\((?P<page>[\w./-]+\.md)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds them."""
    for here, there in OUTSIDE.items():
        files.append(File.generated(config, there, content=(ROOT / here).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Has each link lead to where its page is in the site."""
    place = page.file.src_uri
    folder = posixpath.dirname(_PLACES.get(place, f"docs/{place}"))

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link["page"]))
        there = OUTSIDE.get(target, posixpath.relpath(target, "docs"))
        return f"]({there}{link['anchor'] or ''})"

    return _LINK.sub(led, markdown)
