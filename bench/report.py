"""The results of a run for people: lines, tables, one HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from . import charts, machine
from .charts import peers, rows, seconds, times
from .compare import Comparison
from .console import width, wrapped
from .contestants import DOOR, NOT_INSTALLED, US, is_peer

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
    parts += [f"{row['contestant']} {row['status']}" for row in trouble(entry)]
    return f"{entry['name']:28} {'; '.join(parts)}"


def contestants(found: Iterable[dict[str, str]]) -> list[str]:
    """The contestants that take part, and those that do not with the reason."""
    return [f"{c['name']:18}{'ABSENT: ' + c['absent'] if c['absent'] else c['what']}" for c in found]


def absent(found: Iterable[dict[str, str]]) -> list[str]:
    """The contestants that do not take part, each once, and how to install those that are missing."""
    reasons: dict[str, list[str]] = {}
    for each in found:
        if each["absent"]:
            reasons.setdefault(each["absent"], []).append(each["name"])
    packages, told = [], []
    for reason, names in reasons.items():
        package = reason.removesuffix(NOT_INSTALLED)
        if package == reason:
            told.append(f"not measured: {', '.join(names)}: {reason}")
        else:
            packages.append(package if names == [package] else f"{package} ({', '.join(names)})")
    if packages:
        told.append(f"not installed: {', '.join(packages)}; pip install 'proptim[bench]' brings what runs here")
    return told


def hindrance(found: dict[str, Any], asked: Sequence[str]) -> str:
    """Why there is no figure of proptim, or none of what was asked for; an empty string if there are figures."""
    if any(US in rows(entry) and not rows(entry).keys().isdisjoint(asked) for entry in found["workloads"]):
        return ""
    reasons = absent(each for each in found["contestants"] if each["name"] in {US, *asked})
    reasons += [
        f"{entry['name']}: {row['contestant']}: {row['reason']}"
        for entry in found["workloads"]
        for row in entry["results"]
        if row["status"] != "ok" and row["contestant"] in {US, *asked}
    ]
    several = list(dict.fromkeys(reasons))
    more = f"; and {len(several) - 3} more" if len(several) > 3 else ""
    return (
        f"no figure of what was asked for ({'; '.join(several[:3]) or 'no case was done'}{more}): "
        "`proptim bench --list` lists what can be measured here"
    )


def rule_tables(found: dict[str, Any]) -> list[Table]:
    """A table for each rule, with a column for each step: the figures of proptim, then the ratios of the others."""
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for entry in found["workloads"]:
        if US in rows(entry):
            by_rule.setdefault(entry["workload"]["rule"], []).append(entry)
    return [_rule_table(found, rule, entries) for rule, entries in by_rule.items()]


OWN = ("ns a weight", "GB/s", "% of the roof")


def _rule_table(found: dict[str, Any], rule: str, entries: Sequence[dict[str, Any]]) -> Table:
    measured = [rows(entry) for entry in entries]
    names = [each["name"] for each in found["contestants"]]
    others = [name for name in names if name != US and any(name in each for each in measured)]
    others.sort(key=lambda name: not (is_peer(name) or name == DOOR))  # peers and torch door first
    ours = [each[US] for each in measured]
    lines = [
        [US, *(seconds(row["median"]) for row in ours)],
        [OWN[0], *(f"{row['ns_per_weight']:.3g}" for row in ours)],
        [OWN[1], *(f"{row['gb_per_s']:.3g}" for row in ours)],
    ]
    if any("roof_percent" in row for row in ours):
        lines.append([OWN[2], *(f"{row['roof_percent']:.0f}" if "roof_percent" in row else "" for row in ours)])
    lines += [[name, *(_ratio(each.get(name)) for each in measured)] for name in others]
    heads = [entry["name"].removeprefix(rule + " ").removesuffix(" gradients") for entry in entries]
    return [rule, *heads], lines


def _ratio(row: dict[str, Any] | None) -> str:
    return "" if row is None or "ratio" not in row else times(row["ratio"])


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


def text_tables(table: Table, columns: int) -> list[str]:
    """A table with aligned columns, split into several with the same row names if it is wider than the terminal."""
    head, lines = table
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    parts: list[list[int]] = [[]]
    for place in range(1, len(head)):
        if parts[-1] and widths[0] + sum(widths[i] + 2 for i in (*parts[-1], place)) > columns:
            parts.append([])
        parts[-1].append(place)
    return [
        "\n".join(
            "  ".join([cells[0].ljust(widths[0]), *(cells[i].rjust(widths[i]) for i in part)]).rstrip()
            for cells in (head, *lines)
            if cells is head or any(cells[i] for i in part)
        )
        for part in parts
    ]


def _goal_text(found: dict[str, Any]) -> str:
    _, lines = goal_table(found)
    known = [cells for cells in lines if cells[2] != "not measured"]
    widths = [max(map(len, column)) for column in zip(*known, strict=True)]
    told = [
        f"{c[0]:{widths[0]}} {c[1]:{widths[1]}} {c[2]:>{widths[2]}} {c[3]:>{widths[3]}} {c[4]}".rstrip() for c in known
    ]
    if missing := len(lines) - len(known):
        told.append(f"{missing} figures were not measured; --full measures all")
    return "\n".join(["Goals", *told])


def comparison(compared: Comparison) -> str:
    """Both runs side by side."""
    return "\n\n".join(
        [wrapped(compared.about), *text_tables(compared.table(), width()), *map(wrapped, compared.notes)]
    )


def text(found: dict[str, Any]) -> str:
    """The tables, as wide as the terminal, and what went wrong."""
    tables = [part for table in rule_tables(found) for part in text_tables(table, width())]
    parts = []
    if tables:
        parts.append(wrapped("Time of one step, and how many times as long other libraries take:"))
    parts += tables
    if found["goals"]:
        parts.append(_goal_text(found))
    failed = [
        wrapped(f"{entry['name']}: {row['contestant']} {row['status']}: {row['reason']}")
        for entry in found["workloads"]
        for row in trouble(entry)
    ]
    if failed:
        parts.append("\n".join(["Failures", *failed]))
    return "\n\n".join(parts)


# The page ---------------------------------------------------------------------------------------------------------

CSS = """
:root{color-scheme:light dark;--page:#fff;--text:#222;--soft:#555;--line:#e4e4e4;--code:#f3f3f3;--warn:#fff4ec;
--ours:#0072b2;--roof:#000;--peer:#707070;--other:#d55e00;--bar:#b3b3b3;--ink:#333;--faint:#d9d9d9;
--met:#00714f;--missed:#b34700}
@media (prefers-color-scheme:dark){:root{--page:#16181b;--text:#e4e4e4;--soft:#a9adb3;--line:#33373d;--code:#24272c;
--warn:#3a2618;--ours:#56b4e9;--roof:#fff;--peer:#a0a4aa;--other:#e8833a;--bar:#6b7078;--ink:#c9ccd1;--faint:#3a3e45;
--met:#3fc79a;--missed:#f0975a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:24px 20px 64px;background:var(--page);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:.2em 0}
h2{font-size:1.2rem;margin:2.4em 0 .2em}
p{max-width:46em;margin:.4em 0 1em}
.head{color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin:1.2em 0}
.facts div{flex:1 1 200px;border-left:4px solid var(--ours);padding:2px 0 2px 12px}
.facts b{display:block;font-size:1.7rem;line-height:1.2;color:var(--ours)}
.facts span{font-size:.88rem;color:var(--soft)}
.warning{border-left:4px solid var(--other);background:var(--warn);padding:8px 12px;max-width:none}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:20px 24px}
figure{margin:0;min-width:0}
svg{display:block;width:100%;height:auto}
.wide{overflow-x:auto;margin:.6em 0 1.6em}
table{border-collapse:collapse;font-size:.82rem;font-variant-numeric:tabular-nums;white-space:pre}
th,td{padding:3px 9px;text-align:right;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--page)}
table.goals td:nth-child(2),table.goals th:nth-child(2),table.names td,table.names th{text-align:left}
table.goals td:nth-child(2),table.names td{white-space:normal}
tr.us td{font-weight:600;color:var(--ours)}
tr.own td{color:var(--soft)}
.met,.faster{color:var(--met)}
.missed,.slower{color:var(--missed);font-weight:600}
code{font:.92em ui-monospace,"DejaVu Sans Mono",monospace;background:var(--code);padding:1px 4px;border-radius:3px}
@media (max-width:600px){body{padding:16px 14px 48px}h1{font-size:1.4rem}.facts b{font-size:1.4rem}
th:first-child,td:first-child{white-space:pre-wrap;max-width:9.5em}}
"""

CAPTIONS = {
    "time": (
        "Time of one step",
        "Lower is faster; both axes are logarithmic, and the same in each chart. The dotted line is the roof: a kernel "
        "that reads and writes as many arrays, aligned as well as possible, and hardly computes, measured in the same "
        "run. For large arrays no step can be faster than that; for small ones the overhead of the call is the limit.",
    ),
    "ratio": (
        "How many times as long other libraries take",
        "The blue line is proptim, a bar the median of the ratios of each round, the thin line their quartiles. "
        "Orange bars to the left of the line are faster than proptim. The scale is logarithmic, and the same in each "
        "chart.",
    ),
    "tail": (
        "The slowest steps",
        "Single steps of RMSprop. The dot is the median, the mark above it the 99th percentile, both in multiples of "
        "the median on one thread.",
    ),
}


def page(found: dict[str, Any], compared: Comparison | None = None) -> str:
    """All results on one HTML page that loads no other files."""
    parts = [
        "<h1>proptim on this machine</h1>",
        *(f'<div class="head">{_text(text)}</div>' for text in machine.lines({**found["machine"], "warnings": []})),
        f'<div class="head">{_text(found["machine"]["date"])}, '
        f"{found['settings']['seconds'] / 60:.0f} min, up to {found['settings']['rounds']} rounds</div>",
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
    if compared is not None:
        parts.append(f"<h2>Compared with an earlier run</h2><p>{_text(compared.about)}</p>{_table(compared.table())}")
        parts += [f"<p>{_text(note)}</p>" for note in compared.notes]
    if found["goals"]:
        head, lines = goal_table(found)
        known = (head, [cells for cells in lines if cells[2] != "not measured"])
        parts.append(f"<h2>Goals</h2>{_table(known, 'goals')}")
        if missing := len(lines) - len(known[1]):
            parts.append(
                f"<p>{missing} figures were not measured in this run; <code>proptim bench --full --goals</code> "
                "measures all.</p>"
            )
    parts.append(
        "<h2>All figures</h2><p>Each column is a step: the time of proptim, the time per weight, the bytes moved per "
        "second, and these as a share of the roof; then how many times as long other libraries take.</p>"
    )
    parts += [_table(table) for table in rule_tables(found)]
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
        parts.append(f"<h2>Failures</h2>{_table((['step', 'contestant', 'reason'], failed), 'names')}")
    parts.append(
        "<h2>How this was measured</h2><p>Each library runs in a process of its own and steps the same seeded "
        "numbers. After a warm-up they are measured in turn, A B A B. GB/s counts the bytes that the rule has to move: "
        "parameters and state are read and written, the gradient is read. docs/performance.md explains the commands "
        "and the goals.</p>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>proptim bench</title><style>{CSS}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _facts(found: dict[str, Any]) -> str:
    """The three most important numbers."""
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
        roof = f", {ours['roof_percent']:.0f} % of the roof, the speed of memory" if "roof_percent" in ours else ""
        told = f"{entry['name']}: {ours['ns_per_weight']:.2f} ns a weight{roof}{against}"
        shown.append(f"<div><b>{seconds(ours['median'])}</b><span>{_text(told)}</span></div>")
    return f'<div class="facts">{"".join(shown)}</div>'


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _table(table: Table, kind: str = "") -> str:
    head, lines = table

    def cell(text: str) -> str:
        css = text if text in ("met", "missed", "faster", "slower") else ""
        return f"<td{f' class={css}' if css else ''}>{_text(text)}</td>"

    def row(cells: list[str]) -> str:
        css = "" if kind else "us" if cells[0] == US else "own" if cells[0] in OWN else ""
        return f"<tr{f' class={css}' if css else ''}>{''.join(map(cell, cells))}</tr>"

    titles = "".join(f"<th>{_text(name)}</th>" for name in head)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(map(row, lines))}</tbody></table></div>"
    )


def plot(found: dict[str, Any], folder: str) -> None:
    """The charts as .png."""
    charts.png(found, folder)
