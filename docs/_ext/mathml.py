"""Formulas as MathML, which browsers draw by themselves: no script, no font, nothing from a network.

The conversion is that of docutils, on which Sphinx is built.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def convert(node: nodes.math | nodes.math_block, block: bool) -> str:
    """The MathML of one formula; what cannot be converted is a warning, and shown as it is written."""
    code = node.astext()
    try:
        # Equations that blank lines divide stand one below the other, so that they fit on a phone.
        return "".join(tex2mathml(part, as_block=block) for part in code.split("\n\n"))
    except MathError as error:
        logger.warning("formula %r: %s", code, error, location=node, type="math")
        return f"<code>{code}</code>"


def visit_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{convert(node, block=False)}</span>')
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
