"""Formulas as SVG in the page, drawn when it is built, so that reading them needs no script, font or network."""

from __future__ import annotations

from html import escape
from typing import Any
from xml.etree import ElementTree

import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

ziamath.config.math.color = "currentColor"  # the colour of the text, also in dark mode
ziamath.config.svg2 = False  # glyphs as paths: as symbols they would be looked up by name in the whole page
EM = 16
SIZE = 1.2 * EM
"""Letters of the formulas' font are smaller than those of most pages."""


def svg(code: str, node: nodes.Node, inline: bool) -> str:
    """One formula; if it cannot be drawn, warn and show its source."""
    try:
        formula = ziamath.Latex(code, size=SIZE, inline=inline)
        if "\\" in formula.mathmlstr():
            raise ValueError("unknown command")
    except Exception as error:  # a mistake in a formula makes the parser raise many kinds of errors
        logger.warning("formula %r cannot be drawn: %r", code, error, location=node, type="math")
        return f"<code>{escape(code)}</code>"
    image = formula.svgxml()
    del image.attrib["width"], image.attrib["height"]
    _, top, width, height = (float(number) / EM for number in image.attrib["viewBox"].split())
    image.attrib |= {
        "style": f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{-top - height:.3f}em",
        "role": "img",
        "aria-label": code,
    }
    return ElementTree.tostring(image, encoding="unicode")


def visit_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{svg(node.astext(), node, inline=True)}</span>')
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """Equations that are separated by blank lines are drawn one below the other, so that they fit on a phone."""
    for code in node.astext().strip().split("\n\n"):
        translator.body.append(f'<div class="math">{svg(code, node, inline=False)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("svg", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
