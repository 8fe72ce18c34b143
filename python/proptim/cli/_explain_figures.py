"""The figures of `proptim explain`; the only module of the command that needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure

from proptim._files import whole
from proptim.cli._explain_points import ALPHAS, FIGURES, OFF_RIDGE, Batches, Landscapes, Sizes

# Okabe & Ito (2008): distinct with every kind of colour blindness. An optimizer has the same colour in all figures.
COLOURS = {
    "SGD": "#000000",
    "Rprop": "#D55E00",
    "RMSprop": "#0072B2",
    "Adagrad": "#009E73",
    "Adam": "#CC79A7",
}
QUIET = "#595959"  # 7:1 against white
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "lines.linewidth": 2.2,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}
DPI = 150


def draw(out: Path, sizes: Sizes, batches: Batches, landscapes: Landscapes) -> list[Path]:
    """Draw the three figures into the directory `out`."""
    with rc_context(STYLE):
        figures = [draw_sizes(sizes), draw_batches(batches), draw_landscapes(landscapes)]
        paths = [out / name for name in FIGURES]
        for path, figure in zip(paths, figures, strict=True):
            for axes in figure.axes:
                axes.minorticks_off()  # axes that span many decades need no minor ticks
            with whole(path) as temporary:
                figure.savefig(temporary, dpi=DPI)
    return paths


def headline(figure: Figure | SubFigure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=15.5, weight="bold")


def say(axes: Axes, x: float, y: float, text: str, optimizer: str = "", **options: Any) -> None:
    """Text at a point of the data, in the colour of an optimizer; with `to`, an arrow to another point."""
    colour = tuple(0.8 * part for part in to_rgb(COLOURS[optimizer])) if optimizer else QUIET  # thin, so darker
    options = {"color": colour, "weight": "bold" if optimizer else "normal", "linespacing": 1.3, **options}
    to = options.pop("to", None)
    if to is None:
        axes.text(x, y, text, **options)
    else:
        arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 2, "shrinkB": 5}
        axes.annotate(text, to, (x, y), arrowprops=arrow, **options)


def draw_sizes(p: Sizes) -> Figure:
    figure = Figure(figsize=(14, 6.2))
    headline(
        figure,
        "Gradients that differ by a factor of a billion: no learning rate suits both weights, Rprop needs only signs",
    )
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, p.steps + 1)
    flat, steep = np.abs(p.paths["SGD"][1:] - p.start).T
    rprop = np.abs(p.paths["Rprop"][1:] - p.start)

    left.axhline(p.start, color=QUIET, lw=1.2, ls="--")
    say(left, p.steps, p.start * 1.6, f"minimum of both weights, {p.start:g} away", ha="right")
    left.plot(steps, np.array([flat, steep]).T, color=COLOURS["SGD"])
    left.plot(steps, rprop[:, 0], color=COLOURS["Rprop"], lw=8, alpha=0.3, solid_capstyle="round")
    left.plot(steps, rprop[:, 1], color=COLOURS["Rprop"])
    say(left, 3, 6e3, f"SGD, gradient {p.gradients[1]:g}", "SGD", to=(12, steep[11]))
    say(left, 60, flat[60] * 3, f"SGD, gradient {p.gradients[0]:f}", "SGD")
    say(left, 60, flat[60] / 2, f"after {p.steps} steps it has moved {flat[-1]:f}", va="top")
    say(left, 36, 0.6, "Rprop, both weights: two curves in one", "Rprop", va="top")
    difference = f"greatest difference between them\nin {p.steps} steps: {p.rprop_difference:g}"
    say(left, 36, 0.12, difference, va="top")
    left.annotate("", (1, steep[0]), (1, flat[0]), arrowprops={"arrowstyle": "<|-|>", "color": QUIET})
    say(left, 4, 1e-4, f"SGD's first steps:\n{p.sgd_ratio / 1e9:.1f} billion times\napart", va="center")
    left.set(yscale="log", ylim=(2e-8, 3e4), xlim=(-2, p.steps + 2), xlabel="steps")
    left.set_ylabel("distance moved from the start")
    left.set_title(f"SGD (lr {p.sgd_lrs[0]:g}) takes one weight to the minimum, hardly moves the other")

    moves = np.abs(np.diff(p.paths["Rprop"][:, 0]))
    largest, smallest = p.rprop_moves["largest"], p.rprop_moves["smallest"]
    turn = int(np.flatnonzero(moves == largest)[-1]) + 1  # the first step after the plateau
    right.axhline(largest, color=QUIET, lw=1.2, ls="--")
    right.axhline(smallest, color=QUIET, lw=1.2, ls="--")
    right.plot(steps, moves, color=COLOURS["Rprop"], lw=1.2, marker="o", ms=3.5)
    say(right, p.steps, largest * 1.5, f"never above {largest:g}", ha="right")
    say(right, 0, smallest / 1.5, f"never below {smallest:f}", va="top")
    say(right, 29, 0.03, "sign as before:\nstep x 1.2", "Rprop", to=(21, moves[20]), va="top")
    beyond = "sign turned: the minimum\nis behind, step x 0.5"
    say(right, turn + 17, moves[turn] / 2, beyond, "Rprop", to=(turn + 3, moves[turn + 2]), va="center")
    right.set(yscale="log", ylim=(2e-7, 3e2), xlim=(-2, p.steps + 2), xlabel="steps")
    right.set_ylabel("length of Rprop's step")
    right.set_title("Rprop finds the length of its step by itself")
    return figure


def draw_batches(p: Batches) -> Figure:
    figure = Figure(figsize=(14, 6.2))
    headline(
        figure,
        "Gradients that cancel: Rprop uses only signs and drifts off; RMSprop drifts less, least with alpha near 1",
    )
    left, middle, right = figure.subplots(1, 3, width_ratios=[0.7, 1.7, 1])
    share = p.drift_over_travel
    rounds = len(p.gradients)

    left.bar(np.arange(1, rounds + 1), p.gradients, color=QUIET, width=0.7)
    left.axhline(0, color=QUIET, lw=1)
    say(left, 5, 0.13, f"{p.gradients[0]}, nine times", ha="center")
    say(left, 9.4, p.gradients[-1], f"{p.gradients[-1]} once", ha="right")
    say(left, 4.8, -0.42, "Together: 0.\nThe weight\nshould stay.", ha="center")
    left.set(ylim=(-1, 0.25), xticks=[1, rounds], xlabel="mini-batch", ylabel="gradient")
    left.set_title("One round")

    end = p.cycles * rounds + 4
    for name, down, opacity in (
        ("SGD", 0, 1),
        ("Rprop", 0, 1),
        (f"RMSprop, alpha {ALPHAS[0]}", 0, 1),
        (f"RMSprop, alpha {ALPHAS[1]}", 0.008, 0.6),  # its end is at SGD's, its label below
    ):
        path, optimizer, label = p.paths[name], name.split(",")[0], name.replace(", ", "\n")
        middle.plot(path, color=COLOURS[optimizer], lw=1.8, alpha=opacity)
        say(middle, end, path[-1] - down, label, optimizer, va="center", alpha=opacity)
    middle.set(
        xlabel=f"mini-batches ({p.cycles} rounds of {rounds})",
        ylabel="weight",
        xlim=(0, end + 46),
        xticks=range(0, end, 50),
    )
    middle.set_title("Rprop: nine steps down, one up, in every round")

    rest = 1 - np.array(ALPHAS)
    shares = [share[f"RMSprop, alpha {alpha}"] for alpha in ALPHAS]
    right.axhline(share["Rprop"], color=COLOURS["Rprop"])
    say(right, rest[1], share["Rprop"] / 1.15, f"Rprop {share['Rprop']:.0%}", "Rprop", va="top", ha="center")
    say(right, rest[0], 7e-4, f"SGD: {share['SGD']:.1%}, below this scale", "SGD")
    right.plot(rest, shares, color=COLOURS["RMSprop"], marker="o", ms=8)
    for x, y in zip(rest, shares, strict=True):
        say(right, x / 1.2, y * 1.05, f"{100 * y:.2g}%", "RMSprop")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="alpha of RMSprop",
        xlim=(rest[0] * 1.5, rest[-1] / 3.5),
        ylim=(5e-4, 1.5),
    )
    right.set_ylabel("net drift / distance travelled")
    right.set_xticks(rest, [str(alpha) for alpha in ALPHAS])
    right.set_yticks([1, 0.1, 0.01, 0.001], ["100%", "10%", "1%", "0.1%"])
    right.set_title("RMSprop's drift fades")
    return figure


def draw_landscapes(p: Landscapes) -> Figure:
    figure = Figure(figsize=(14, 10.5))
    headline(
        figure,
        "Dividing by the recent size of the gradient keeps the speed, dividing by its whole past loses it",
    )
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.1])
    top.suptitle(
        f"Steps to the bottom (+) of a ravine {p.condition:g} times as curved one way as the other; "
        f"lr {p.lr}, for SGD its best",
        x=0.01,
        ha="left",
        fontsize=12.5,
        weight="bold",
    )
    ravines = top.subplots(1, 4, sharey=True)
    for axes, name in zip(ravines, p.ravine_steps, strict=True):
        draw_ravine(axes, p, name)
    ravines[0].set_ylabel("steep direction")
    fastest, steps = min(p.ravine_steps.items(), key=lambda run: run[1] or p.patience)
    here = p.paths["ravine SGD"][steps or 0]
    say(ravines[0], -0.6, 0.75, f"SGD after {steps} steps,\nwhen {fastest} arrives", "SGD", to=(here[0], here[1]))
    saddle, slope = bottom.subplots(1, 2)
    draw_saddle(saddle, p)
    draw_slope(slope, p)
    return figure


def draw_ravine(axes: Axes, p: Landscapes, name: str) -> None:
    x, y = np.meshgrid(np.linspace(-1.1, 0.3, 141), np.linspace(-1.2, 1.2, 401))
    height = (x**2 + p.condition * y**2) / 2
    axes.contour(x, y, height, levels=np.geomspace(0.02, 600, 14), colors="#BBBBBB", linewidths=0.8)
    thin = {"lw": 0.5, "alpha": 0.6} if name == "SGD" else {"lw": 1.8, "marker": "o", "ms": 4}
    axes.plot(*p.paths[f"ravine {name}"].T, color=COLOURS[name], **thin)
    axes.plot(0, 0, marker="+", color="black", ms=14, mew=2)
    turned = f"ravine turned by 45\N{DEGREE SIGN}: {count(p.diagonal_ravine_steps[name], p)}"
    say(axes, -1.05, -1.12, turned, bbox={"color": "white", "pad": 2})
    axes.set(xlabel="flat direction", xticks=[-1, -0.5, 0], yticks=[-1, -0.5, 0, 0.5, 1])
    axes.set_title(f"{name}: {count(p.ravine_steps[name], p)} steps")
    axes.grid(visible=False)


def draw_saddle(axes: Axes, p: Landscapes) -> None:
    axes.axhline(OFF_RIDGE, color=QUIET, lw=1.2, ls="--")
    say(axes, 27, OFF_RIDGE * 1.3, "off the ridge", ha="center")
    say(axes, 5, 1e-6, f"start: {p.ridges[-1]:f} from the ridge")
    places = {"SGD": (24, 0.004), "Adagrad": (12.5, 0.19), "RMSprop": (0.3, 1.8), "Adam": (6, 0.08)}
    for name, (x, y) in places.items():
        axes.plot(p.paths[f"saddle {name}"][:, 1], color=COLOURS[name], marker="o", ms=4)
        say(axes, x, y, f"{name}: {count(p.saddle_steps[name][-1], p)} steps", name, va="top")
    axes.set(yscale="log", ylim=(5e-7, 4), xlabel="steps", ylabel="distance from the ridge of the saddle")
    axes.set_title("On a saddle's ridge SGD waits for the gradient to grow")


def draw_slope(axes: Axes, p: Landscapes) -> None:
    steps = np.arange(1, p.slope_steps + 1)
    for name, way in p.travelled.items():
        moves = p.paths[f"slope {name}"] / p.lr
        axes.plot(steps, moves, color=COLOURS[name])
        text = f"{name}: last step {p.last_move_over_lr[name]:.2g} lr,\ntravelled {way:.0f} in all"
        say(axes, 150, moves[149] * 1.25, text, name)
    axes.set(xscale="log", yscale="log", ylim=(5e-3, 6), xlabel="steps, each with gradient 1")
    axes.set_ylabel("length of the step / lr")
    axes.set_title("On a steady slope Adagrad's step falls as 1 / sqrt(steps)")


def count(steps: int | None, p: Landscapes) -> str:
    return f"over {p.patience:,}" if steps is None else f"{steps:,}"
