"""Pages that are written by going over what there is: one for every optimizer, and the help of every command.

A new optimizer gets its page, its picture and its row in the table by being in `proptim.OPTIMIZERS`.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import proptim
from proptim import cli

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

WORD = 4
"""Bytes of a float32."""
PICTURES = "/examples/images/sphx_glr_plot_paths_{:03d}.png"
"""Figures of docs/gallery/plot_paths.py: first all optimizers, then each, in the order of the registry."""


def headline(cls: type[proptim.Optimizer]) -> str:
    """The first line of a docstring, without the name at its beginning."""
    line = (inspect.getdoc(cls) or "").partition("\n")[0].removeprefix(f"{cls.__name__}: ")
    return line[:1].upper() + line[1:]


def state_of(cls: type[proptim.Optimizer]) -> list[tuple[str, str]]:
    """Each state array, and the hyperparameter that switches it on, or nothing."""
    return [(state, cls.optional.get(state, "")) for state in cls.states]


def always(cls: type[proptim.Optimizer]) -> int:
    """The number of state arrays without any option."""
    return sum(not switch for _, switch in state_of(cls))


def traffic(arrays: int) -> int:
    """Bytes that a step moves for a float32 weight: gradient read, parameter and state read and written."""
    return WORD + 2 * WORD * (1 + arrays)


def hyperparameters(cls: type[proptim.Optimizer]) -> list[tuple[str, str, str]]:
    """Name, default, and whether it may be a schedule."""
    return [
        (name, repr(parameter.default), "yes" if "Schedulable" in str(parameter.annotation) else "no")
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in ("params", "options")
    ]


def table(widths: str, *rows: tuple[str, ...]) -> list[str]:
    """A list-table; the first row is its head."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in rows:
        lines += [f"   {'-' if i else '* -'} {cell}" if not i else f"     - {cell}" for i, cell in enumerate(row)]
    return [*lines, ""]


def title(text: str, line: str = "=") -> list[str]:
    return [text, line * len(text), ""]


def optimizer_page(name: str, cls: type[proptim.Optimizer], number: int) -> str:
    """The page of one optimizer; `number` is that of its picture."""
    arrays = always(cls)
    state = [f"``{array}``" + (f" with `{switch}`" if switch else "") for array, switch in state_of(cls)]
    shown = [f"``{key}``" for key in cls([np.zeros(1)]).state[0] if key not in (*cls.states, *cls.clock_start)]
    more = "; with " + " or ".join(f"`{switch}`" for _, switch in state_of(cls) if switch) if cls.optional else ""
    lines = [
        *title(cls.__name__),
        f"{headline(cls)}",
        "",
        f".. image:: {PICTURES.format(number)}",
        f"   :alt: The path of {cls.__name__} through a ravine and across a saddle",
        "   :target: ../examples/plot_paths.html",
        "",
        *title("At a glance", "-"),
        *table(
            "30 70",
            ("what", "how much"),
            ("state arrays", (", ".join(state) or "none") + (f", shown as {' and '.join(shown)}" if shown else "")),
            (
                "memory for state",
                f"{WORD * arrays} bytes a weight in float32, {2 * WORD * arrays} in float64"
                + (f"{more}, {WORD} and {2 * WORD} more each" if more else ""),
            ),
            (
                "moved in a step",
                f"{traffic(arrays)} bytes a weight in float32" + (f"{more}, {2 * WORD} more each" if more else ""),
            ),
            ("counts", ", ".join(f"``{count}``" for count in cls.clock_start)),
            ("without an object", f":func:`proptim.functional.{name}`"),
        ),
        *title("Reference", "-"),
        ".. currentmodule:: proptim",
        "",
        f".. autoclass:: proptim.{cls.__name__}",
        "",
        "For methods, attributes, and the options that all optimizers share see :class:`proptim.Optimizer`.",
        "",
        *title("Hyperparameters", "-"),
        *table(
            "44 34 22",
            ("name", "default", "schedule?"),
            *((f"``{key}``", f"``{default}``", may) for key, default, may in hyperparameters(cls)),
        ),
    ]
    return "\n".join(lines)


def index_page() -> str:
    """All optimizers side by side."""
    rows = [
        (f":class:`~proptim.{cls.__name__}`", headline(cls), f"{WORD * always(cls)}", f"{traffic(always(cls))}")
        for cls in proptim.OPTIMIZERS.values()
    ]
    lines = [
        *title("Optimizers"),
        ":doc:`/choose` helps to select one. Bytes are those of a float32 weight without options: the size of the",
        "state, and the bytes that a step moves through memory.",
        "",
        *table("18 58 12 12", ("optimizer", "what it does", "state", "moved"), *rows),
        f".. image:: {PICTURES.format(1)}",
        "   :alt: The paths of all optimizers through a ravine",
        "   :target: ../examples/plot_paths.html",
        "",
        ".. toctree::",
        "   :hidden:",
        "",
        *(f"   {name}" for name in proptim.OPTIMIZERS),
        "",
    ]
    return "\n".join(lines)


def functional_page() -> str:
    """The function of every rule."""
    lines = [
        *title("Without an object"),
        ".. automodule:: proptim.functional",
        "   :no-members:",
        "",
        *title("Functions", "-"),
        *(f".. autofunction:: proptim.functional.{name}" for name in proptim.OPTIMIZERS),
        "",
    ]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Every page by its path below docs/."""
    optimizers = enumerate(proptim.OPTIMIZERS.items(), start=2)
    return {
        "optimizers/index.rst": index_page(),
        **{f"optimizers/{name}.rst": optimizer_page(name, cls, number) for number, (name, cls) in optimizers},
        "api/functional.rst": functional_page(),
    }


def write_pages(app: Sphinx) -> None:
    """Write only pages that have changed, which Sphinx then reads; delete those of optimizers that no longer exist."""
    folder = Path(app.srcdir)
    texts = pages()
    (folder / "optimizers").mkdir(exist_ok=True)
    for old in (folder / "optimizers").glob("*.rst"):
        if f"optimizers/{old.name}" not in texts:
            old.unlink()
    for path, text in texts.items():
        page = folder / path
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def help_of(*command: str) -> str:
    """What `proptim COMMAND --help` prints on a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, "-m", "proptim", *command, "--help"],
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def command_help() -> list[nodes.Node]:
    """A section with its help for each command."""
    from docutils import nodes

    made: list[nodes.Node] = []
    for module in cli.COMMANDS:
        name = module.__name__.rpartition(".")[2]
        section = nodes.section(ids=[f"proptim-{name}"], names=[f"proptim {name}"])
        section += nodes.title("", f"proptim {name}")
        text = help_of(name)
        section += nodes.literal_block(text, text, language="none")
        made.append(section)
    return made


def setup(app: Sphinx) -> dict[str, bool]:
    from docutils.parsers.rst import Directive

    class CommandHelp(Directive):
        def run(self) -> list[nodes.Node]:
            return command_help()

    app.add_directive("command-help", CommandHelp)
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
