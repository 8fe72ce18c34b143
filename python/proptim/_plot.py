"""Draw the record of `Optimizer.watch`; the first call imports matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from proptim._watch import Watch

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
"""Okabe & Ito (2008): distinct with every kind of colour blindness."""
MOST_NAMED = len(COLOURS)
"""Up to so many parameters have a colour each and a legend; more are all drawn in the same way."""
PANELS = {
    "grad_norm": "norm of the gradient",
    "weight_norm": "norm of the weights",
    "ratio": "norm of the update /\nnorm of the weights",
    "turned": "share of gradients\nthat changed sign",
    "step_sizes": "step size: median,\nand 10 % to 90 %",
}
"""Column -> the label of its panel."""


def plot(watch: Watch, path: str | PathLike[str] | None = None, parameters: Iterable[int | str] | None = None) -> Any:
    """Draw the record of a `Watch`: a panel for each quantity, a line for each parameter.

    Parameters
    ----------
    watch : Watch
        What `Optimizer.watch` returned.
    path : str or path-like, optional
        File to write the picture to; its suffix gives the format: .png, .svg or .pdf.
    parameters : iterable of int or str, optional
        The names or indices of the parameters to draw; all by default.

    Returns
    -------
    matplotlib.figure.Figure
        The picture, which a notebook shows and ``matplotlib.pyplot.show()`` opens in a window.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If it is not a `Watch`.
    ValueError
        If nothing has been recorded.
    KeyError
        For a parameter without a record.

    Examples
    --------
    >>> import numpy as np, proptim
    >>> opt = proptim.Rprop({"w": np.zeros(3)})
    >>> watch = opt.watch()
    >>> opt.step([np.ones(3)])
    >>> proptim.plot(watch, "watch.png")  # doctest: +SKIP
    """
    if not isinstance(watch, Watch):
        raise TypeError(f"watch is {type(watch).__name__}; expected what watch() of an optimizer returned")
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"proptim.plot draws with matplotlib, which cannot be imported ({error}); install it: pip install "
            "matplotlib, or write the numbers with watch.save('watch.csv')"
        ) from error
    seen = {key: watch[key] for key in (watch if parameters is None else parameters)}
    if not seen:
        raise ValueError(f"the watch has recorded no step; expected at least one (every={watch.every})")
    panels = [name for name in PANELS if any(name in columns for columns in seen.values())]
    figure, axes = plt.subplots(
        len(panels), 1, sharex=True, squeeze=False, figsize=(7, 1.4 + 1.6 * len(panels)), layout="constrained"
    )
    named = len(seen) <= MOST_NAMED
    for ax, panel in zip(axes[:, 0], panels, strict=True):
        for i, (key, columns) in enumerate(seen.items()):
            if panel not in columns:
                continue
            style: dict[str, Any] = {"color": COLOURS[i if named else 0], "alpha": 1.0 if named else 0.3}
            style |= {"marker": "."} if len(columns["step"]) == 1 else {}  # a line of one point would be invisible
            values = columns[panel]
            if panel == "step_sizes":
                low, values, high = watch.quantiles(key, (0.1, 0.5, 0.9)).T
                ax.fill_between(columns["step"], low, high, color=style["color"], alpha=0.2, linewidth=0)
            ax.plot(columns["step"], values, linewidth=1.2, label=str(key), **style)
        ax.set_ylabel(PANELS[panel])
        ax.grid(alpha=0.3)
        if panel == "turned":
            ax.set_ylim(0, 1)
        elif any((line.get_ydata() > 0).any() for line in ax.lines):  # a logarithmic axis of zeros has no ticks
            ax.set_yscale("log")
    axes[-1, 0].set_xlabel("step")
    figure.align_ylabels()
    if named and len(seen) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    if path is not None:
        from proptim._files import whole

        with whole(path) as temporary:
            figure.savefig(temporary, dpi=150)
    if "inline" in plt.get_backend():  # a notebook shows what a cell returns, and what pyplot still holds once more
        plt.close(figure)
    return figure
