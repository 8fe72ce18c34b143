"""`proptim explain`: the three points of the RMSprop story, re-enacted and measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from proptim.cli._explain_points import (
    NEAR,
    Batches,
    Landscapes,
    Sizes,
    batches,
    landscapes,
    numbers,
    sizes,
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "explain",
        help="the three points of the RMSprop story, with numbers and figures",
        description="Re-enact the three points of the RMSprop story; each ends in the number that proves it.",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a figure for each point there (PNG)")
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.out:
        check_out(args.out)
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


def check_out(out: Path) -> None:
    """Find out that the figures cannot be written before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"--out draws with matplotlib, which cannot be imported ({error}); "
            "pip install 'proptim[demo]', or leave --out away for text and numbers alone"
        ) from error
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; expected a directory, new or existing")
    out.mkdir(parents=True, exist_ok=True)


def tell_sizes(p: Sizes) -> list[str]:
    def row(who: str, what: str, values: list[float], remark: str = "") -> str:
        flat, steep = values
        return f"   {who:15}{what:24}{flat:>11.4g}{steep:>15.4g}   {remark}".rstrip()

    sgd, bold = p.sgd_lrs
    to_go = f"to go after {p.steps} steps"
    return [
        "1. Sizes of gradients: no learning rate suits both weights, the sign of the gradient does.",
        f"   Each starts {p.start:g} from the bottom of its own parabola, where the gradient is "
        f"{p.gradients[0]:g} or {p.gradients[1]:g}.",
        f"{'flat weight':>53}{'steep weight':>15}",
        row(f"SGD, lr {sgd:g}", "first move", p.sgd_first_moves[0]),
        row("", to_go, p.sgd_left, "one has hardly begun"),
        row(f"SGD, lr {bold:g}", "first move", p.sgd_first_moves[1], "one is thrown out"),
        row("Rprop", "first move", [p.rprop_moves["first"]] * 2),
        row("", to_go, p.rprop_left, "both arrive, together"),
        "   Rprop looks at the sign alone: its step grows by 1.2 while the last two signs agree and is",
        f"   halved when they differ. It met both of its bounds: {p.rprop_moves['largest']:g} on the way, "
        f"{p.rprop_moves['smallest']:g} at the end.",
        f"   => SGD's first moves are {p.sgd_ratio:.4g} times apart; the two paths under Rprop differ by "
        f"{p.rprop_difference:g}.",
        "",
    ]


def tell_batches(p: Batches) -> list[str]:
    share = p.drift_over_travel
    remarks = {
        "Rprop": "step held: nine moves one way, one back",
        "Rprop, adapting": "as it comes",
        "RMSprop, alpha 0.9": "the published alpha",
    }
    return [
        "2. Mini-batches: gradients that cancel should leave the weight where it is.",
        f"   {p.cycles} rounds of nine gradients of {p.gradients[0]} and one of {p.gradients[-1]}; "
        "moves of about 0.001.",
        f"{'net drift':>37}{'of its way':>13}",
        *(
            f"   {name:22}{p.drift[name]:>12.2g}{share[name]:>13.2%}   {remarks.get(name, '')}".rstrip()
            for name in p.drift
        ),
        "   RMSprop divides by a moving root mean square, nearly the same for neighbouring mini-batches.",
        "   Nearly: it still moves within a round; the drift which that leaves fades as alpha nears 1.",
        f"   => Of its way Rprop keeps {share['Rprop']:.0%} as drift, RMSprop "
        f"{share['RMSprop, alpha 0.9']:.0%}, with alpha 0.999 {share['RMSprop, alpha 0.999']:.1%}.",
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
        f"   off the ridge of a saddle. lr {p.lr}; for SGD 2/{p.condition + 1:g}, the best there is, and 1/2,",
        "   one over the greatest curvature.",
        f"{'ravine':>31}{'turned by 45 deg':>18}" + "".join(f"{f'{ridge:g} off ridge':>18}" for ridge in p.ridges),
        *map(row, p.ravine_steps),
        "   A divisor for each weight makes a bowl of a ravine along the axes, but not of one across them.",
        "   At the saddle only SGD takes longer the nearer to the ridge it starts.",
        f"   => After {p.slope_steps} gradients of 1 Adagrad's step is {last['Adagrad']:.3g} lr, "
        "for it falls as 1/sqrt(steps);",
        f"      RMSprop's is {last['RMSprop']:.3g} lr. They have travelled {way['Adagrad']:.3g} and "
        f"{way['RMSprop']:.3g}.",
        "   A step that never falls circles the minimum in the end: let lr fall, see proptim.schedules.",
    ]
