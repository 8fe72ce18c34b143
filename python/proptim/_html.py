"""An optimizer as a notebook shows it: groups, hyperparameters, and the state arrays with their sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from proptim._arrays import name_of
from proptim._parameters import Group, Parameter

if TYPE_CHECKING:
    from proptim.optimizer import Optimizer

MOST = 50
"""The largest number of parameters of a group that are listed; the others are only counted."""
LONGEST = 80
"""The largest number of characters of a value."""


def show(optimizer: Optimizer) -> str:
    """The HTML of an optimizer. All names and values are escaped; colours are those of the notebook."""
    groups: list[tuple[Group, list[Parameter]]] = optimizer._members
    every = [p for _, members in groups for p in members]
    head = (
        f"<b>{cell(type(optimizer).__name__)}</b>: {optimizer.steps:,} steps"
        + (f", {optimizer.skipped:,} skipped" if optimizer.skipped else "")
        + f"; backend {cell(optimizer.backend)}, threads {cell(optimizer.threads)}"
    )
    keys = [key for key in groups[0][0] if key != "params"]
    keys += [key for key in dict.fromkeys(k for group, _ in groups for k in group) if key not in ("params", *keys)]
    names = ["group", "arrays", "weights", "bytes", "state", "bytes of state"]
    rows = [[i, *sizes(members)] for i, (_, members) in enumerate(groups)]
    total = [["all", *sizes(every)]] if len(groups) > 1 else []
    hyper = [[key, *(group.get(key, "") for group, _ in groups)] for key in sorted(keys)]
    lists = "".join(listing(f"parameters of group {i}", members) for i, (_, members) in enumerate(groups))
    return (
        f"<div><p>{head}</p>{table(names, [*rows, *total])}"
        + table(["hyperparameter", *(f"group {i}" for i in range(len(groups)))], hyper)
        + f"{lists}</div>"
    )


def sizes(members: Sequence[Parameter]) -> list[str]:
    """Arrays, weights and their bytes; the names of the state arrays and their bytes."""
    state = [array for p in members for array in (*p.state.values(), p.plane) if array is not None]
    return [
        f"{len(members):,}",
        f"{sum(p.array.size for p in members):,}",
        f"{sum(p.array.nbytes for p in members):,}",
        ", ".join(dict.fromkeys(name for p in members for name in p.state)) or "none",
        f"{sum(array.nbytes for array in state):,}",
    ]


def listing(title: str, members: Sequence[Parameter]) -> str:
    """The parameters of a group, closed until it is clicked."""
    rows = [
        [p.place if p.name is None else p.name, p.array.shape, name_of(p.array.dtype), *sizes([p])[2:]]
        for p in members[:MOST]
    ]
    more = f"<p>and {len(members) - MOST:,} more</p>" if len(members) > MOST else ""
    names = ["parameter", "shape", "dtype", "bytes", "state", "bytes of state"]
    return f"<details><summary>{cell(title)}</summary>{table(names, rows)}{more}</details>"


def table(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """An HTML table."""
    head = "".join(f"<th>{cell(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell(value: Any) -> str:
    """A value as escaped HTML."""
    text = str(value)
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
