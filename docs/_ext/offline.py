"""Checks of the finished site: every internal link has a target, and no page loads anything from another site."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

LOADED = {("script", "src"), ("img", "src"), ("img", "srcset"), ("link", "href"), ("iframe", "src")}
"""What a browser fetches by itself; other links wait for a reader."""
REMOTE_LINKS = {"canonical", "prev", "next", "search", "index"}
"""`<link rel=...>` that browsers do not fetch."""


class Page(HTMLParser):
    """The anchors of a page and its links: (tag, address)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.points: list[tuple[str, str, bool]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value for key, value in attrs if value}
        self.anchors.update(value for key, value in found.items() if key == "id" or (tag == "a" and key == "name"))
        told = tag == "link" and bool(REMOTE_LINKS & set(found.get("rel", "").split()))
        for key in ("href", "src", "srcset"):
            for address in found.get(key, "").split(",") if key == "srcset" else [found.get(key, "")]:
                if address.strip():
                    self.points.append((tag, address.split()[0], (tag, key) in LOADED and not told))


def check(app: Sphinx, exception: Exception | None) -> None:
    """Warn of each link without a target; Sphinx fails on warnings."""
    if exception is not None or app.builder.format != "html":
        return
    root = Path(app.outdir)
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in root.rglob("*.html")}
    for path, page in pages.items():
        for tag, address, loaded in page.points:
            url = urlsplit(address)
            where = path.relative_to(root)
            if url.scheme or url.netloc:
                if loaded and url.scheme != "data":
                    logger.warning("%s: <%s> is fetched from %s", where, tag, address)
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_file():
                logger.warning("%s: link to %s, which is not there", where, address)
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors:
                logger.warning("%s: link to %s, which has no such place", where, address)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
