"""The charts of the report: each draws one panel, for a page of its own SVGs or a PNG of several."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .contestants import US, is_peer
from .tails import SITUATIONS
from .workloads import MODELS, short

TIMES = "\N{MULTIPLICATION SIGN}"
# Okabe and Ito's colours, which stay apart for colour-blind eyes; peers are grey and named where they end.
OURS, ROOF, PEER, OTHER, BAR = "#0072b2", "#000000", "#707070", "#d55e00", "#b3b3b3"
INK, FAINT = "#333333", "#d9d9d9"
PANEL = (4.4, 3.5)  # inches: fills a phone, and three stand side by side on a desk
LABEL_GAP = 0.062  # of a panel's height: a line of text
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text: it can be searched, and the page's own font draws it
}
Panel = Callable[[Any], None]


def seconds(value: float) -> str:
    """3.2e-05 -> 32 us."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def times(ratio: float) -> str:
    """A ratio with as many digits as it deserves."""
    return f"{ratio:.{0 if ratio >= 9.95 else 1 if ratio >= 1.95 else 2}f}{TIMES}"


def rows(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Contestants of a workload that were measured."""
    return {row["contestant"]: row for row in entry["results"] if row["status"] == "ok"}


def plain(found: dict[str, Any], rule: str) -> list[dict[str, Any]]:
    """Workloads of one float32 array without extras, by size."""
    entries = [
        entry
        for entry in found["workloads"]
        if entry["workload"]["rule"] == rule
        and entry["workload"]["model"] not in MODELS
        and entry["workload"]["dtype"] == "float32"
        and entry["workload"]["clip_norm"] is None
        and entry["workload"]["gradients"] == "bound"
        and not entry["workload"]["options"]
        and entry["weights"] >= 1000
        and US in rows(entry)
    ]
    return sorted(entries, key=lambda entry: int(entry["weights"]))


def peers(found: dict[str, Any]) -> list[str]:
    """Contestants of other packages, and NumPy by hand."""
    return [each["name"] for each in found["contestants"] if is_peer(each["name"])]


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights of labels, from the lowest, moved apart so that none covers another, and back into the panel."""
    moved = list(heights)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + LABEL_GAP)
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], 1 - (len(moved) - 1 - i) * LABEL_GAP)
    return moved


def _name_ends(axes: Any, ends: list[tuple[float, float, str, str, str]]) -> None:
    """Write names right of the ends of curves: x, y, name, colour, weight of the font."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted((to_axes.transform((x, y))[1], *end) for end in ends for x, y in [end[:2]])
    for height, (_, x, y, name, colour, weight) in zip(_spread([end[0] for end in placed]), placed, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.05, height),
            textcoords="axes fraction",
            color=colour,
            fontweight=weight,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkB": 0},
        )


def _clean(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def by_size(found: dict[str, Any], rule: str) -> Panel:
    """Time of a step against the number of weights."""

    def draw(axes: Any) -> None:
        entries = plain(found, rule)
        curves: dict[str, list[tuple[int, float]]] = {}
        for entry in entries:
            measured = rows(entry)
            for name in (US, *peers(found)):
                if name in measured:
                    curves.setdefault(name, []).append((entry["weights"], measured[name]["median"]))
            roofs = [row["median"] for name, row in measured.items() if name.startswith("roof-")]
            if roofs:
                curves.setdefault("memory", []).append((entry["weights"], min(roofs)))
        ends = []
        for name, points in sorted(curves.items(), key=lambda item: item[0] == US):
            colour = {US: OURS, "memory": ROOF}.get(name, PEER)
            x, y = zip(*points, strict=True)
            width, style = {US: (2.4, "-"), "memory": (1.2, (0, (2, 2)))}.get(name, (1.0, "-"))
            axes.plot(x, y, color=colour, linewidth=width, linestyle=style, marker="o", markersize=2.5)
            ends.append((x[-1], y[-1], name, colour, "bold" if name == US else "normal"))
        axes.set(xscale="log", yscale="log", xlabel="weights")
        axes.xaxis.set_major_formatter(lambda value, _: short(round(value)))
        axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
        axes.minorticks_off()
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        _clean(axes, f"{rule}: one step")
        _name_ends(axes, ends)

    return draw


def by_ratio(found: dict[str, Any], entry: dict[str, Any]) -> Panel:
    """How many times as long as proptim each peer takes."""

    def draw(axes: Any) -> None:
        measured = rows(entry)
        bars = sorted(
            (measured[name]["ratio"], name) for name in peers(found) if name in measured and "ratio" in measured[name]
        )
        most = max([measured[name]["ratio_high"] for _, name in bars] + [2.0])
        least = min([measured[name]["ratio_low"] for _, name in bars] + [1.0])
        for height, (ratio, name) in enumerate(bars):
            row = measured[name]
            colour = BAR if ratio >= 1 else OTHER
            axes.barh(height, ratio - 1, left=1, height=0.62, color=colour)
            axes.plot([row["ratio_low"], row["ratio_high"]], [height, height], color=INK, linewidth=1)
            where = max(ratio, row["ratio_high"], 1.0)
            axes.annotate(
                times(ratio),
                (where, height),
                (4, 0),
                textcoords="offset points",
                verticalalignment="center",
            )
        axes.axvline(1, color=OURS, linewidth=2.4)
        axes.set_title(
            f"proptim {seconds(measured[US]['median'])}", loc="right", color=OURS, fontweight="bold", fontsize=9
        )
        axes.set(
            xscale="log",
            xlim=(least * 0.8 if least < 1 else 1, (most * 1.1) * (most / min(least, 1)) ** 0.14),
            ylim=(-0.6, len(bars) - 0.4),
        )
        axes.set_yticks(range(len(bars)), [name for _, name in bars])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}{TIMES}")
        axes.minorticks_off()
        _clean(axes, entry["name"])

    return draw


def by_tail(found: dict[str, Any], situation: str) -> Panel:
    """Median and slowest hundredth of steps, in multiples of one thread's median."""

    def draw(axes: Any) -> None:
        measured = [row for row in found["tails"] if row["situation"] == situation and row["status"] == "ok"]
        ends = []
        for place, row in enumerate(measured):
            unit = row["threads"]["1"]["p50"]
            for shift, threads, colour in ((-0.13, "1", PEER), (0.13, "auto", OURS)):
                timing = row["threads"][threads]
                low, high = timing["p50"] / unit, timing["p99"] / unit
                axes.plot([place + shift] * 2, [low, high], color=colour, linewidth=1.6)
                axes.plot(place + shift, low, "o", color=colour, markersize=6)
                axes.plot(place + shift, high, "_", color=colour, markersize=11, markeredgewidth=2)
                side, offset = ("right", -5) if threads == "1" else ("left", 5)
                axes.annotate(
                    times(high),
                    (place + shift, high),
                    (offset, 5),
                    textcoords="offset points",
                    horizontalalignment=side,
                    color=colour,
                    fontsize=8,
                )
                if place == len(measured) - 1:
                    name = "one thread" if threads == "1" else 'threads="auto"'
                    ends.append((place + shift, low, name, colour, "bold" if threads == "auto" else "normal"))
        axes.set_yscale("log")
        axes.set_xticks(range(len(measured)), [short(int(row["model"])) for row in measured])
        axes.set_xlim(-0.5, len(measured) - 0.5)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.5), max(high * 1.3, 4))
        axes.set_xlabel("weights")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{TIMES}")
        axes.minorticks_off()
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        _clean(
            axes, {"alone": "alone", "torch": "torch in the same process", "busy": "beside a busy process"}[situation]
        )
        _name_ends(axes, ends)

    return draw


def panels(found: dict[str, Any]) -> dict[str, list[tuple[str, Panel]]]:
    """Chart -> its panels, with words for who cannot see them."""
    measured = list(dict.fromkeys(entry["workload"]["rule"] for entry in found["workloads"]))
    headliners = [rule for rule in ("rmsprop", "rprop", "adam", "adagrad") if len(plain(found, rule)) > 1]
    made: dict[str, list[tuple[str, Panel]]] = {
        "time": [
            (f"Time of a step of {rule} against the number of weights", by_size(found, rule)) for rule in headliners
        ]
    }
    chosen = []
    for rule in headliners or measured:
        entries = plain(found, rule)
        chosen += [entry for entry in entries[:-1] if entry["weights"] in (1000, 100_000)] + entries[-1:]
    chosen += [e for e in found["workloads"] if e["workload"]["model"] in MODELS and US in rows(e)][:3]
    crowded = [entry for entry in chosen if any(name in rows(entry) for name in peers(found))]
    made["ratio"] = [(f"Peers' times over proptim's, {e['name']}", by_ratio(found, e)) for e in crowded]
    situations = dict.fromkeys(row["situation"] for row in found["tails"] if row["status"] == "ok")
    made["tail"] = [(f"Slowest steps when {SITUATIONS[name]}", by_tail(found, name)) for name in situations]
    return {chart: each for chart, each in made.items() if each}


def _figure(count: int, columns: int) -> tuple[Any, list[Any]]:
    lines = math.ceil(count / columns)
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(PANEL[0] * columns, PANEL[1] * lines), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(count)]
    return figure, axes


def svg(panel: Panel, name: str) -> str:
    """One panel as an element to stand in a page."""
    matplotlib: Any = importlib.import_module("matplotlib")
    # The salt keeps apart the identifiers of drawings on one page.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, (axes,) = _figure(1, 1)
        panel(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace('xmlns:xlink="http://www.w3.org/1999/xlink" ', "", 1)


def png(found: dict[str, Any], folder: str) -> list[Path]:
    """Every chart as a file."""
    matplotlib: Any = importlib.import_module("matplotlib")
    made = []
    for chart, each in panels(found).items():
        with matplotlib.rc_context(STYLE):
            figure, axes = _figure(len(each), min(3, len(each)))
            for (_, panel), one in zip(each, axes, strict=True):
                panel(one)
            path = Path(folder) / f"bench-{chart}.png"
            figure.savefig(path, dpi=150)
        made.append(path)
    return made
