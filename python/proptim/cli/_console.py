"""What `proptim train` shows: progress, a table, a figure."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from proptim._files import whole

if TYPE_CHECKING:
    from proptim.cli._run import Run

LINES = 10  # of progress in a log: enough to see that it moves

# The colours of Okabe and Ito, which colour-blind readers can tell apart (the yellow is darker here, to be visible on
# white); dashed where curves of --optimizer all coincide.
STYLES = (
    ("#0072b2", "-"),
    ("#d55e00", "-"),
    ("#009e73", "-"),
    ("#cc79a7", "--"),
    ("#56b4e9", "-"),
    ("#e69f00", "--"),
    ("#000000", ":"),
    ("#a89f00", "-"),
)
LOSS_FLOOR = 1e-11  # drawn for a loss of 0; the least other loss is 6e-8 (one float32 step below 1) in 1,438 samples
PANEL, MARGIN = (4.2, 3.0), 1.5  # inches: one set of axes, and the space to the right of it for names
NAME_GAP = 0.055  # of a panel's height: a line of text


def require(module: str, purpose: str, otherwise: str) -> ModuleType:
    """Import a module that the `demo` extra installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose} ({error}); pip install 'proptim[demo]', or {otherwise}") from error


@contextmanager
def progress(runs: Sequence[Run], title: str, stream: TextIO | None) -> Iterator[Callable[[Run], None]]:
    """A function to call after every epoch: it moves a bar on a terminal, else it prints a line from time to time."""
    if stream is None:
        yield lambda run: None
        return
    print(title, file=stream, flush=True)
    rich = _rich(stream)
    if rich is None:
        every = max(1, round(sum(run.epochs for run in runs) / LINES))

        def show(run: Run) -> None:
            epoch = len(run.loss)
            if epoch % every == 0 or epoch == run.epochs:
                print(f"{run.name:9} epoch {epoch:3}/{run.epochs}  {_state(run)}", file=stream, flush=True)

        yield show
        return
    columns = (
        "{task.description:9}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        "{task.fields[state]}",
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(file=stream), transient=True) as bars:
        tasks = {run.name: bars.add_task(run.name, total=run.epochs, state="") for run in runs}
        yield lambda run: bars.update(tasks[run.name], completed=len(run.loss), state=_state(run))


def _rich(stream: TextIO) -> Any:
    """The package rich, if it can draw on this stream; else None."""
    if not stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):  # no terminal that can move its cursor
        return None
    try:
        importlib.import_module("rich.progress")
        return importlib.import_module("rich")
    except ImportError:
        return None


def _state(run: Run) -> str:
    return f"loss {run.loss[-1]:.1e}  test {run.score_name} {run.score_text():>6}"


def table(runs: Sequence[Run]) -> str:
    """One row for each run."""
    name = runs[0].score_name if runs else "accuracy"
    rows = [("optimizer", f"test {name}", "loss", "epochs", "steps", "seconds", "in the optimizer")]
    for run in runs:
        share = run.optimizer_seconds / run.seconds
        rows.append(
            (
                run.name,
                "diverged" if run.diverged else run.score_text(),
                f"{run.loss[-1]:.1e}",
                str(len(run.loss)),
                str(run.steps),
                f"{run.seconds:.2f}",
                f"{share:.0%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def draw(runs: Sequence[Run], title: str, path: str) -> None:
    """Training loss above test score; a column for mini-batches, one for Rprop's full batches."""
    families = {
        "mini-batches": [run for run in runs if not run.full_batch],
        "full batches, one step an epoch": [run for run in runs if run.full_batch],
    }
    families = {heading: members for heading, members in families.items() if members}
    width, height = 0.9 + len(families) * (PANEL[0] + MARGIN), 1.7 + 2 * PANEL[1]
    figure = require("matplotlib.figure", "--plot needs matplotlib", "leave --plot out").Figure(
        figsize=(width, height), dpi=150
    )
    figure.suptitle(title, y=1 - 0.25 / height)
    axes = figure.subplots(2, len(families), sharex="col", sharey="row", squeeze=False)
    figure.subplots_adjust(
        left=0.9 / width,
        right=1 - MARGIN / width,
        bottom=0.6 / height,
        top=1 - 0.8 / height,
        wspace=MARGIN / PANEL[0],
        hspace=0.3 / PANEL[1],
    )
    score = runs[0].score_name
    axes[0, 0].set(ylabel="training loss", yscale="log")
    # The largest of the final errors takes a quarter of the height, so that the ends of the curves are distinct. An
    # accuracy is never below 0, and an R2 below -1 says only that nothing was learned.
    worst = max((1 - run.test_score[-1] for run in runs if not run.diverged), default=1)
    lowest = 0 if score == "accuracy" else -1
    axes[1, 0].set(ylabel=f"test {score}", ylim=(max(lowest, 1 - 4 * max(worst, 0.01)), 1))
    if score == "accuracy":
        axes[1, 0].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    panels = []
    for (above, below), (heading, members) in zip(axes.T, families.items(), strict=True):
        above.set_title(heading)
        below.set_xlabel("epoch")
        below.xaxis.get_major_locator().set_params(integer=True)
        panels.append((above, [(run.name, np.maximum(run.loss, LOSS_FLOOR)) for run in members]))
        panels.append(
            (
                below,
                [(f"{run.name} {run.score_text()}", np.array(run.test_score)) for run in members],
            )
        )
    for panel, curves in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
        for (colour, style), (_, values) in zip(STYLES, curves, strict=False):
            panel.plot(range(1, len(values) + 1), values, style, color=colour)
    for panel, curves in panels:  # only after all curves are drawn, because panels share their limits
        _name_ends(panel, curves)
    with whole(path) as temporary:
        figure.savefig(temporary)


def _name_ends(panel: Any, curves: list[tuple[str, NDArray[Any]]]) -> None:
    """Write the name of each curve to the right of its end; move names apart that would overlap."""
    panel.autoscale_view()
    to_panel = panel.transData + panel.transAxes.inverted()
    names = []
    for (colour, _), (name, values) in zip(STYLES, curves, strict=False):
        finite = np.flatnonzero(np.isfinite(values))
        if len(finite):  # a loss that overflowed in the first epoch has no curve
            end = finite[-1] + 1, values[finite[-1]]
            names.append((to_panel.transform(end)[1], end, name, colour))
    names.sort()
    heights = [height for height, *_ in names]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + NAME_GAP)
    for i in reversed(range(len(heights))):  # move names that were pushed beyond the top down again
        heights[i] = min(heights[i], 1 - (len(heights) - 1 - i) * NAME_GAP)
    for height, (_, end, name, colour) in zip(heights, names, strict=True):
        panel.annotate(
            name,
            end,
            (1.04, height),
            textcoords="axes fraction",
            color=colour,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 0,
            },
        )
