"""The charts of the report: each draws one panel, for a page of its own SVGs or a PNG of several."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from proptim._files import whole

from .contestants import US, is_peer
from .tails import SITUATIONS
from .workloads import MODELS, short

TIMES = "\N{MULTIPLICATION SIGN}"
# The colours of Okabe and Ito, which colour-blind readers can tell apart; peers are grey, with their names at the ends
# of their curves. No colour is the default black of SVG, because the HTML page replaces each colour.
OURS, ROOF, PEER, OTHER, BAR = "#0072b2", "#111111", "#707070", "#d55e00", "#b3b3b3"
INK, FAINT = "#333333", "#d9d9d9"
# In the HTML page they are variables of its style sheet, which have other values in dark mode.
VARIABLES = {
    OURS: "--ours",
    ROOF: "--roof",
    PEER: "--peer",
    OTHER: "--other",
    BAR: "--bar",
    INK: "--ink",
    FAINT: "--faint",
}
PANEL = (4.4, 3.5)  # inches: one chart fills a phone, and three fit side by side on a desktop screen
LABEL_GAP = 0.062  # of a panel's height: a line of text
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # keep text as text: it can be searched, and has the font of the page
}
Panel = Callable[[Any], None]
Range = tuple[float, float]


def seconds(value: float) -> str:
    """3.2e-05 -> 32 us."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def times(ratio: float) -> str:
    """A ratio with two or three significant digits."""
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
        and entry["workload"]["model"].isdecimal()
        and entry["workload"]["dtype"] == "float32"
        and entry["workload"]["state_dtype"] is None
        and entry["workload"]["clip_norm"] is None
        and entry["workload"]["gradients"] == "bound"
        and not entry["workload"]["options"]
        and entry["weights"] >= 1000
        and US in rows(entry)
    ]
    return sorted(entries, key=lambda entry: int(entry["weights"]))


def peers(found: dict[str, Any]) -> list[str]:
    """Contestants of other packages, and handwritten NumPy."""
    return [each["name"] for each in found["contestants"] if is_peer(each["name"])]


def _ratios(found: dict[str, Any], entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Peers that were measured in the same runs as proptim."""
    measured = rows(entry)
    return {name: measured[name] for name in peers(found) if "ratio" in measured.get(name, {})}


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights of labels, from the lowest, moved apart so that they do not overlap, and within the panel."""
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
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10, pad=18)
    axes.spines[["top", "right"]].set_visible(False)


def _log(axis: Any, marks: Sequence[float], name: Callable[[float], str]) -> None:
    """Marks at these multiples of the powers of ten."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(subs=marks, numticks=20))
    axis.set_major_formatter(lambda value, _: name(value))
    axis.set_minor_locator(ticker.NullLocator())


def _times(value: float) -> str:
    return f"{value:g}{TIMES}"


def _span(values: Iterable[float], below: float, above: float) -> Range:
    """The range from the least to the greatest, with a margin."""
    known = list(values)
    return min(known) * below, max(known) * above


def _curves(found: dict[str, Any], rule: str) -> dict[str, list[tuple[int, float]]]:
    """Contestant, or "memory" -> weights and seconds."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in plain(found, rule):
        measured = rows(entry)
        for name in (US, *peers(found)):
            if name in measured:
                curves.setdefault(name, []).append((entry["weights"], measured[name]["median"]))
        roofs = [row["median"] for name, row in measured.items() if name.startswith("roof-")]
        if roofs:
            curves.setdefault("memory", []).append((entry["weights"], min(roofs)))
    return curves


def by_size(found: dict[str, Any], rule: str, x_range: Range, y_range: Range) -> Panel:
    """Time of a step against the number of weights."""

    def draw(axes: Any) -> None:
        axes.set(xscale="log", yscale="log", xlim=x_range, ylim=y_range, xlabel="weights")
        ends = []
        for name, points in sorted(_curves(found, rule).items(), key=lambda item: item[0] == US):
            colour = {US: OURS, "memory": ROOF}.get(name, PEER)
            x, y = zip(*points, strict=True)
            width, style = {US: (2.4, "-"), "memory": (1.2, (0, (2, 2)))}.get(name, (1.0, "-"))
            axes.plot(x, y, color=colour, linewidth=width, linestyle=style, marker="o", markersize=2.5)
            ends.append((x[-1], y[-1], name, colour, "bold" if name == US else "normal"))
        _log(axes.xaxis, (1,), lambda value: short(round(value)))
        _log(axes.yaxis, (1,), seconds)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        _clean(axes, f"{rule}: one step")
        _name_ends(axes, ends)

    return draw


def by_ratio(found: dict[str, Any], entry: dict[str, Any], x_range: Range) -> Panel:
    """How many times as long as proptim each peer takes."""

    def draw(axes: Any) -> None:
        measured = rows(entry)
        bars = sorted((row["ratio"], name) for name, row in _ratios(found, entry).items())
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
        axes.annotate(
            f"proptim {seconds(measured[US]['median'])}",
            (0, 1),
            (0, 5),
            xycoords="axes fraction",
            textcoords="offset points",
            color=OURS,
            fontweight="bold",
        )
        axes.set(xscale="log", xlim=x_range, ylim=(-0.6, len(bars) - 0.4))
        axes.set_yticks(range(len(bars)), [name for _, name in bars])
        axes.tick_params(axis="y", length=0)
        _log(axes.xaxis, (1,) if x_range[1] > 40 else (1, 2, 5), _times)
        _clean(axes, entry["name"])

    return draw


def by_tail(found: dict[str, Any], situation: str, y_range: Range) -> Panel:
    """Median and 99th percentile of the times of steps, in multiples of the median on one thread."""

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
                if threads == "auto":  # the room left of it is the other's, and further right the next pair's
                    axes.annotate(
                        times(high),
                        (place + shift, high),
                        (-4, 3),
                        textcoords="offset points",
                        color=colour,
                        fontsize=8,
                    )
                if place == len(measured) - 1:
                    name = "one thread" if threads == "1" else 'threads="auto"'
                    ends.append((place + shift, low, name, colour, "bold" if threads == "auto" else "normal"))
        axes.set(yscale="log", ylim=y_range)
        axes.set_xticks(range(len(measured)), [short(int(row["model"])) for row in measured])
        axes.set_xlim(-0.5, len(measured) - 0.5)
        axes.set_xlabel("weights")
        _log(axes.yaxis, (1,) if y_range[1] > 40 else (1, 2, 5), _times)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        _clean(
            axes, {"alone": "alone", "torch": "torch in the same process", "busy": "beside a busy process"}[situation]
        )
        _name_ends(axes, ends)

    return draw


def panels(found: dict[str, Any]) -> dict[str, list[tuple[str, Panel]]]:
    """Chart -> its panels, with descriptions for readers who cannot see them."""
    measured = list(dict.fromkeys(entry["workload"]["rule"] for entry in found["workloads"]))
    headliners = [rule for rule in ("rmsprop", "rprop", "adam", "adagrad") if len(plain(found, rule)) > 1]
    made: dict[str, list[tuple[str, Panel]]] = {}
    # Panels of one chart have the same axes, so that they can be compared.
    points = [point for rule in headliners for curve in _curves(found, rule).values() for point in curve]
    if points:
        ranges = _span((x for x, _ in points), 0.6, 1.6), _span((y for _, y in points), 0.6, 1.6)
        made["time"] = [
            (f"Time of a step of {rule} against the number of weights", by_size(found, rule, *ranges))
            for rule in headliners
        ]
    chosen = []
    for rule in headliners or measured:
        entries = plain(found, rule)
        chosen += [entry for entry in entries[:-1] if entry["weights"] in (1000, 100_000)] + entries[-1:]
    chosen += [e for e in found["workloads"] if e["workload"]["model"] in (*MODELS, "200x64") and US in rows(e)][:3]
    crowded = [entry for entry in chosen if any("ratio" in rows(entry).get(name, {}) for name in peers(found))]
    if crowded:
        theirs = [
            rows(entry)[name] for entry in crowded for name in peers(found) if "ratio" in rows(entry).get(name, {})
        ]
        low, high = _span([1.0, *(row[key] for row in theirs for key in ("ratio_low", "ratio_high"))], 1, 1)
        x_range = low * 0.8 if low < 1 else 1.0, max(high, 2.0) * (max(high, 2.0) / low) ** 0.2  # and room for a figure
        made["ratio"] = [(f"Peers' times over proptim's, {e['name']}", by_ratio(found, e, x_range)) for e in crowded]
    tails = [row for row in found["tails"] if row["status"] == "ok"]
    if tails:
        timings = [
            row["threads"][threads][q] / row["threads"]["1"]["p50"]
            for row in tails
            for threads in ("1", "auto")
            for q in ("p50", "p99")
        ]
        y_range = _span([0.5, 4.0, *timings], 0.9, 1.3)
        situations = dict.fromkeys(row["situation"] for row in tails)
        made["tail"] = [
            (f"Slowest steps when {SITUATIONS[name]}", by_tail(found, name, y_range)) for name in situations
        ]
    return made


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
    # The salt makes the identifiers of several drawings on one page distinct.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, (axes,) = _figure(1, 1)
        panel(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    for colour, variable in VARIABLES.items():
        text = text.replace(f": {colour}", f": var({variable})")
    return text[text.index("<svg") :].replace('xmlns:xlink="http://www.w3.org/1999/xlink" ', "", 1)


def files(folder: str) -> dict[str, Path]:
    """Chart -> the file in which `png` draws it."""
    return {chart: Path(folder) / f"bench-{chart}.png" for chart in ("time", "ratio", "tail")}


def png(found: dict[str, Any], folder: str) -> list[Path]:
    """Every chart as a file."""
    matplotlib: Any = importlib.import_module("matplotlib")
    made = []
    for chart, each in panels(found).items():
        with matplotlib.rc_context(STYLE):
            figure, axes = _figure(len(each), min(3, len(each)))
            for (_, panel), one in zip(each, axes, strict=True):
                panel(one)
            path = files(folder)[chart]
            with whole(path) as temporary:
                figure.savefig(temporary, dpi=150)
        made.append(path)
    return made
