"""The style of the gallery's figures, readable in print and on a phone, and their order; see conf.py."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from sphinx_gallery.sorting import ExampleTitleSortKey

# Okabe & Ito (2008): distinct with every kind of colour blindness.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


ORDER = [
    "paths",
    "rprop",
    "minibatches",
    "adagrad",
    "bias_correction",
    "digits",
    "sklearn",
    "word_vectors",
    "fewer_bytes",
    "schedules",
]
"""The scripts in the order in which to read them; others come after them."""


class Order(ExampleTitleSortKey):
    """Sorts scripts by `ORDER`."""

    def __call__(self, filename: str) -> tuple[int, str]:
        name = filename.removeprefix("plot_").removesuffix(".py")
        return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def reset(gallery_conf: dict[str, Any], script: str) -> None:
    """Undo the settings of the previous script, then set these."""
    mpl.rcdefaults()
    mpl.use("agg")
    mpl.rcParams.update(
        {
            # 6.4 inches are 1,024 pixels here and about 350 on a phone, where letters of 12.5 points have 9.5 pixels.
            "savefig.dpi": 160,
            "font.size": 12.5,
            "axes.titlesize": 12.5,
            "axes.titleweight": "bold",
            "axes.prop_cycle": mpl.cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "figure.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "legend.frameon": False,
            "lines.linewidth": 2,
        }
    )
