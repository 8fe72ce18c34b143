"""`proptim explain`: three experiments, with measured numbers, that show why RMSprop exists."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from proptim._files import check_folder, check_out
from proptim.cli._explain_points import (
    FIGURES,
    NEAR,
    Batches,
    Landscapes,
    Sizes,
    batches,
    landscapes,
    numbers,
    sizes,
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="why Rprop and RMSprop work: three experiments, with numbers and figures",
        description="Why Rprop and RMSprop exist, in three experiments of a few seconds. Each runs the "
        "optimizers of proptim on a function of one or two weights, and ends with the number that proves its point.\n\n"
        "1. Sizes of gradients: if the gradients of two weights differ by a factor of a billion, SGD hardly moves one "
        "or overshoots with the other, whatever its learning rate. Rprop uses only signs, and moves both alike.\n\n"
        "2. Mini-batches: nine gradients of 0.1 and one of -0.9 cancel. Rprop takes nine steps one way and one back; "
        "RMSprop, which divides by a moving root mean square, nearly stays where it is.\n\n"
        "3. Condition number and saddle: how many steps SGD, RMSprop, Adagrad and Adam take along a ravine and off the "
        "ridge of a saddle, and why the steps of Adagrad shrink for ever.",
        examples=(
            ("proptim explain", "print the three experiments"),
            ("proptim explain --out figures", "also draw a picture of each in the folder figures"),
            ("proptim explain --json", "print their numbers as JSON"),
        ),
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"also draw figures in this folder: {', '.join(FIGURES)}"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.out:
        check_figures(args.out)
    first, second, third = sizes(), batches(), landscapes()
    figures = []
    if args.out:
        from proptim.cli._explain_figures import draw

        figures = [str(path) for path in draw(args.out, first, second, third)]
    if args.json:
        result = {
            "sizes": numbers(first),
            "mini_batches": numbers(second),
            "condition_and_saddle": numbers(third),
            "figures": figures,
        }
        print(json.dumps(result, indent=2))
    else:
        written = [f"Wrote {path}" for path in figures]
        print("\n".join([*tell_sizes(first), *tell_batches(second), *tell_landscapes(third), *written]))
    return 0


def check_figures(out: Path) -> None:
    """Raise an error if the figures cannot be written, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"--out draws with matplotlib, which cannot be imported ({error}); "
            "pip install 'proptim[demo]', or omit --out to get only text and numbers"
        ) from error
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; expected a directory, new or existing")
    out.mkdir(parents=True, exist_ok=True)
    check_folder(out, f"--out {out}")
    for name in FIGURES:
        check_out(out / name)


def tell_sizes(p: Sizes) -> list[str]:
    def row(who: str, what: str, values: list[float], remark: str = "") -> str:
        flat, steep = values
        return f"   {who:15}{what:24}{flat:>11.4g}{steep:>15.4g}   {remark}".rstrip()

    sgd, bold = p.sgd_lrs
    to_go = f"to go after {p.steps} steps"
    return [
        "1. Sizes of gradients: no learning rate suits both weights, but the sign of the gradient does.",
        f"   Each starts {p.start:g} from the bottom of its own parabola, where the gradient is "
        f"{p.gradients[0]:g} or {p.gradients[1]:g}.",
        f"{'flat weight':>53}{'steep weight':>15}",
        row(f"SGD, lr {sgd:g}", "first move", p.sgd_first_moves[0]),
        row("", to_go, p.sgd_left, "one has hardly begun"),
        row(f"SGD, lr {bold:g}", "first move", p.sgd_first_moves[1], "one is thrown out"),
        row("Rprop", "first move", [p.rprop_moves["first"]] * 2),
        row("", to_go, p.rprop_left, "both arrive together"),
        "   Rprop uses only the sign: its step grows by a factor of 1.2 while the last two signs agree and",
        f"   halves when they differ. It reached both of its bounds: {p.rprop_moves['largest']:g} on the way, "
        f"{p.rprop_moves['smallest']:g} at the end.",
        f"   => SGD's first moves are {p.sgd_ratio:.4g} times apart; the two paths under Rprop differ by "
        f"{p.rprop_difference:g}.",
        "",
    ]


def tell_batches(p: Batches) -> list[str]:
    share = p.drift_over_travel
    remarks = {
        "Rprop": "constant step: nine moves one way, one back",
        "Rprop, adapting": "default options",
        "RMSprop, alpha 0.9": "the published alpha",
    }
    return [
        "2. Mini-batches: gradients that cancel should leave the weight where it is.",
        f"   {p.cycles} rounds of nine gradients of {p.gradients[0]} and one of {p.gradients[-1]}; "
        "moves of about 0.001.",
        f"{'net drift':>37}{'of its path':>13}",
        *(
            f"   {name:22}{p.drift[name]:>12.2g}{share[name]:>13.2%}   {remarks.get(name, '')}".rstrip()
            for name in p.drift
        ),
        "   RMSprop divides by a moving root mean square, nearly the same for consecutive mini-batches.",
        "   It still changes a little within a round; the drift that is left vanishes as alpha nears 1.",
        f"   => The net drift is {share['Rprop']:.0%} of the path of Rprop, {share['RMSprop, alpha 0.9']:.0%} "
        f"of that of RMSprop, and {share['RMSprop, alpha 0.999']:.1%} with alpha 0.999.",
        "",
    ]


def tell_landscapes(p: Landscapes) -> list[str]:
    def row(name: str) -> str:
        counts = (p.ravine_steps[name], p.diagonal_ravine_steps[name], *p.saddle_steps[name])
        return f"   {name:10}" + "".join(f"{f'over {p.patience}' if n is None else n:>18}" for n in counts)

    last, way = p.last_move_over_lr, p.travelled
    return [
        "3. Condition number and saddle: divide by the gradient's size, but not by its whole past.",
        f"   Steps to within {NEAR} of the bottom of a ravine of condition number {p.condition:g}, and",
        f"   off the ridge of a saddle. lr {p.lr}; for SGD the optimum, 2/{p.condition + 1:g}, and 1/2, which is one",
        "   over the greatest curvature.",
        f"{'ravine':>31}{'turned by 45 deg':>18}" + "".join(f"{f'{ridge:g} off ridge':>18}" for ridge in p.ridges),
        *map(row, p.ravine_steps),
        "   A divisor for each weight turns a ravine along the axes into a bowl, but not one across them.",
        "   At the saddle only SGD takes longer the closer to the ridge it starts.",
        f"   => After {p.slope_steps} gradients of 1 Adagrad's step is {last['Adagrad']:.3g} lr, "
        "because it falls as 1/sqrt(steps);",
        f"      RMSprop's is {last['RMSprop']:.3g} lr. They have travelled {way['Adagrad']:.3g} and "
        f"{way['RMSprop']:.3g}.",
        "   A step that does not shrink ends up oscillating around the minimum: let lr fall, see",
        "   proptim.schedules.",
    ]
