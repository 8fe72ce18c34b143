"""What a run has found, for people: lines, tables, one page of HTML."""

from __future__ import annotations

import contextlib
import html
import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from . import charts, machine
from .charts import peers, rows, seconds, times
from .contestants import US, is_peer

Table = tuple[list[str], list[list[str]]]


def trouble(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Contestants that should have been measured and were not."""
    return [row for row in entry["results"] if row["status"] in ("failed", "skipped")]


def line(entry: dict[str, Any]) -> str:
    """A workload in one line."""
    measured = rows(entry)
    parts = []
    if US in measured:
        ours = measured[US]
        roof = f", {ours['roof_percent']:.0f} % of the roof" if "roof_percent" in ours else ""
        parts.append(f"{seconds(ours['median'])}{roof}")
        others = [(measured[name]["ratio"], name) for name in measured if is_peer(name)]
        if others:
            ratio, name = min(others)
            parts.append(f"fastest peer {name} {times(ratio)}")
    failed = [f"{row['contestant']}: {row['reason']}" for row in trouble(entry)]
    return f"{entry['name']:28} {'; '.join([*parts, *failed[:2]])}"


def contestants(found: Iterable[dict[str, str]]) -> list[str]:
    """Who takes part, and who does not and why."""
    return [f"{c['name']:18}{'ABSENT: ' + c['absent'] if c['absent'] else c['what']}" for c in found]


def _cell(measured: dict[str, dict[str, Any]], name: str) -> str:
    row = measured.get(name)
    return "" if row is None or "ratio" not in row else times(row["ratio"])


def main_table(found: dict[str, Any]) -> Table:
    """proptim's figures, and how many times as long the peers take."""
    names = [name for name in peers(found) if any(name in rows(entry) for entry in found["workloads"])]
    head = ["step", "proptim", "ns/weight", "GB/s", "% of roof", *names]
    return head, [_row(entry, names) for entry in found["workloads"] if US in rows(entry)]


def own_table(found: dict[str, Any]) -> Table:
    """proptim's other ways to make the same step, and what it is measured against."""
    others = [c["name"] for c in found["contestants"] if c["name"] not in (US, *peers(found))]
    names = [name for name in others if any(name in rows(entry) for entry in found["workloads"])]
    return ["step", "proptim", "ns/weight", "GB/s", "% of roof", *names], [
        _row(entry, names) for entry in found["workloads"] if US in rows(entry)
    ]


def _row(entry: dict[str, Any], names: Sequence[str]) -> list[str]:
    measured = rows(entry)
    ours = measured[US]
    percent = f"{ours['roof_percent']:.0f}" if "roof_percent" in ours else ""
    figures = [seconds(ours["median"]), f"{ours['ns_per_weight']:.3g}", f"{ours['gb_per_s']:.3g}", percent]
    return [entry["name"], *figures, *(_cell(measured, name) for name in names)]


def goal_table(found: dict[str, Any]) -> Table:
    """Figure, target and verdict of every part of every goal."""
    lines = []
    for goal in found["goals"]:
        for part in goal["parts"]:
            figure = "not measured" if part["figure"] is None else f"{part['figure']:.3g} {part['unit']}"
            sign = "≥" if part["at_least"] else "≤"
            verdict = {None: "", True: "met", False: "missed"}[part["met"]]
            lines.append([goal["name"], part["label"], figure, f"{sign} {part['target']:g} {part['unit']}", verdict])
    return ["goal", "what", "figure", "target", ""], lines


def text_table(table: Table) -> str:
    """Columns under one another."""
    head, lines = table
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (head, *lines)
    )


def _goal_text(found: dict[str, Any]) -> list[str]:
    _, lines = goal_table(found)
    known = [cells for cells in lines if cells[2] != "not measured"]
    width = max((len(cells[1]) for cells in known), default=0)
    return [f"{c[0]:4} {c[1]:{width}}  {c[2]:>10}  {c[3]:>10}  {c[4]}" for c in known]


def show(found: dict[str, Any], stream: TextIO) -> None:
    """Print the tables; drawn by rich on a terminal."""
    sections = [
        ("Times as long as proptim takes: peers", main_table(found)),
        (
            "Times as long as proptim takes: its other backends, instruction sets and threads, and the roof",
            own_table(found),
        ),
    ]
    rich = None
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        with contextlib.suppress(ImportError):
            rich = importlib.import_module("rich.table")
    for title, table in sections:
        if not table[1]:
            continue
        if rich is None:
            print(f"\n{title}\n{text_table(table)}", file=stream)
        else:
            drawn = rich.Table(title=title, title_justify="left", box=importlib.import_module("rich.box").SIMPLE)
            for place, name in enumerate(table[0]):
                drawn.add_column(name, justify="right" if place else "left", overflow="fold")
            for cells in table[1]:
                drawn.add_row(*cells)
            importlib.import_module("rich.console").Console(file=stream).print(drawn)
    told = _goal_text(found)
    if told:
        print("\nGoals\n" + "\n".join(told), file=stream)
        missing = sum(part["figure"] is None for goal in found["goals"] for part in goal["parts"])
        if missing:
            print(f"{missing} figures were not measured; --full measures all", file=stream)
    absent = [each for each in found["contestants"] if each["absent"]]
    if absent:
        print("\nAbsent\n" + "\n".join(f"{each['name']:18}{each['absent']}" for each in absent), file=stream)


# The page ---------------------------------------------------------------------------------------------------------

CSS = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:24px 20px 64px;background:#fff;color:#222;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:.2em 0}
h2{font-size:1.2rem;margin:2.4em 0 .2em}
p{max-width:46em;margin:.4em 0 1em}
.head{color:#555;font-size:.9rem}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin:1.2em 0}
.facts div{flex:1 1 200px;border-left:4px solid #0072b2;padding:2px 0 2px 12px}
.facts b{display:block;font-size:1.7rem;line-height:1.2;color:#0072b2}
.facts span{font-size:.88rem;color:#444}
.warning{border-left:4px solid #d55e00;background:#fff4ec;padding:8px 12px;max-width:none}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:20px 24px}
figure{margin:0;min-width:0}
svg{display:block;width:100%;height:auto}
.wide{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.82rem;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:3px 9px;text-align:right;border-bottom:1px solid #e4e4e4}
th{font-weight:600;color:#555;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff}
table.goals td:nth-child(2),table.goals th:nth-child(2),table.names td,table.names th{text-align:left}
table.names td{white-space:normal}
td.us{font-weight:600;color:#0072b2}
.met{color:#00714f}
.missed{color:#b34700;font-weight:600}
summary{cursor:pointer;font-weight:600;margin:.6em 0}
code{font:.92em ui-monospace,"DejaVu Sans Mono",monospace;background:#f3f3f3;padding:1px 4px;border-radius:3px}
@media (max-width:600px){body{padding:16px 14px 48px}h1{font-size:1.4rem}.facts b{font-size:1.4rem}}
"""

CAPTIONS = {
    "time": (
        "Time of one step",
        "Lower is faster; both axes are logarithmic. The dotted line is the memory's own speed: a kernel that reads "
        "and writes the same arrays and hardly computes, measured in the same run. Large arrays cannot be stepped "
        "faster than that; small ones are all overhead of the call.",
    ),
    "ratio": (
        "How many times as long the others take",
        "The blue line is proptim, a bar the median of the ratios taken round by round, the thin line their quartiles. "
        "Orange bars to the left of the line are faster than proptim.",
    ),
    "tail": (
        "The slowest steps",
        "Single steps of RMSprop. The dot is the median, the stroke above it what one step in a hundred exceeds, both "
        "in multiples of one thread's median.",
    ),
}


def page(found: dict[str, Any]) -> str:
    """Everything on one page that needs nothing else."""
    parts = [
        "<h1>proptim on this machine</h1>",
        *(f'<div class="head">{_text(text)}</div>' for text in machine.lines({**found["machine"], "warnings": []})),
        f'<div class="head">{_text(found["machine"]["date"])}, '
        f"{found['settings']['seconds'] / 60:.0f} minutes, up to {found['settings']['rounds']} rounds</div>",
        *(f'<p class="warning">Warning: {_text(text)}.</p>' for text in found["machine"]["warnings"]),
        _facts(found),
    ]
    for chart, panels in charts.panels(found).items():
        title, caption = CAPTIONS[chart]
        figures = [
            f'<figure role="img" aria-label="{html.escape(words)}">{charts.svg(panel, f"{chart}{i}")}</figure>'
            for i, (words, panel) in enumerate(panels)
        ]
        parts.append(f'<h2>{title}</h2><p>{caption}</p><div class="charts">{"".join(figures)}</div>')
    head, lines = goal_table(found)
    known = (head, [cells for cells in lines if cells[2] != "not measured"])
    missing = len(lines) - len(known[1])
    parts.append(f"<h2>Goals</h2>{_table(known, 'goals')}")
    if missing:
        parts.append(
            f"<p>{missing} figures were not measured in this run; <code>proptim bench --full</code> measures all.</p>"
        )
    parts.append("<h2>All figures</h2><p>Numbers in the columns of others are multiples of proptim's time.</p>")
    parts.append(f"<details open><summary>Peers</summary>{_table(main_table(found))}</details>")
    parts.append(f"<details><summary>proptim's other ways, and the roof</summary>{_table(own_table(found))}</details>")
    asked = {name for entry in found["workloads"] for name in rows(entry)}
    everyone = [
        [c["name"], c["what"], c["absent"] or ("took part" if c["name"] in asked else "not measured in this run")]
        for c in found["contestants"]
    ]
    parts.append(f"<h2>Contestants</h2>{_table((['name', 'what', ''], everyone), 'names')}")
    failed = [
        [entry["name"], row["contestant"], row["reason"]] for entry in found["workloads"] for row in trouble(entry)
    ]
    if failed:
        parts.append(f"<h2>What went wrong</h2>{_table((['step', 'contestant', 'reason'], failed), 'names')}")
    parts.append(
        "<h2>How this was measured</h2><p>Each library lives in a process of its own, steps the same seeded "
        "numbers, is warmed up and then asked in turn, A B A B. GB/s counts what the rule has to move: parameters and "
        "state read and written, the gradient read. Commands and the meaning of the goals: docs/performance.md.</p>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>proptim bench</title><style>{CSS}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _facts(found: dict[str, Any]) -> str:
    """The three numbers to take home."""
    shown = []
    for rule in ("rmsprop", "rprop", "adam"):
        entries = charts.plain(found, rule)
        if not entries:
            continue
        entry = entries[-1]
        measured = rows(entry)
        ours = measured[US]
        others = [(measured[name]["ratio"], name) for name in peers(found) if name in measured]
        against = f"; fastest peer {min(others)[1]} takes {times(min(others)[0])} as long" if others else ""
        roof = f", {ours['roof_percent']:.0f} % of the memory's own speed" if "roof_percent" in ours else ""
        told = f"{entry['name']}: {ours['ns_per_weight']:.2f} ns a weight{roof}{against}"
        shown.append(f"<div><b>{seconds(ours['median'])}</b><span>{_text(told)}</span></div>")
    return f'<div class="facts">{"".join(shown)}</div>'


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _table(table: Table, kind: str = "") -> str:
    head, lines = table
    us = head.index(US) if US in head else -1

    def cell(place: int, text: str) -> str:
        css = "us" if place == us else text if text in ("met", "missed") else ""
        return f"<td{f' class={css}' if css else ''}>{_text(text)}</td>"

    body = "".join(f"<tr>{''.join(cell(i, c) for i, c in enumerate(cells))}</tr>" for cells in lines)
    titles = "".join(f"<th>{_text(name)}</th>" for name in head)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def plot(found: dict[str, Any], folder: str) -> None:
    """The charts as .png."""
    charts.png(found, folder)
