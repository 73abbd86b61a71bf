"""Pictures of what came of the runs: reverse KL over steps, and accuracy per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from vopd_recipes.evidence.intervals import interval
from vopd_recipes.evidence.outcome import Run, compared
from vopd_recipes.files import finish_axis, new_figure, save_figure, series

_TOP_K = tuple(name for name in compared() if name.startswith("vopd_topk_"))


def plot_curves(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Held-out reverse KL over steps, each method's mean over seeds in its 95 % band, on a logarithmic scale.

    The top-k baselines lie on vOPD's curve, or nearly: they have a panel of their own, vOPD beside them.

    Args:
        runs: of each method, evaluated.
        path: of the PNG.
    """
    panels = [("", [name for name in runs if name not in _TOP_K])]
    if any(name in runs for name in _TOP_K):
        panels.append(("top-k baselines", [name for name in runs if name == "vopd" or name in _TOP_K]))
    panels = [(title, names) for title, names in panels if names]
    figure, axes = new_figure(len(panels), 6.2 * len(panels), 4.8, sharey=True)
    for axis, (title, names) in zip(axes, panels):
        for name in names:
            _draw_curve(axis, name, shared_curves(runs[name]))
        finish_axis(axis, title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("held-out reverse KL (nats per token)")
    save_figure(figure, path)


def shared_curves(runs: Sequence[Run]) -> dict[int, list[float]]:
    """Step → held-out reverse KL of every run, at the steps at which all of them were evaluated."""
    curves = [dict(zip(*series(run.history, "eval_reverse_kl"))) for run in runs]
    return {step: [curve[step] for curve in curves] for step in curves[0] if all(step in curve for curve in curves)}


def _draw_curve(axis: Axes, name: str, curves: Mapping[int, list[float]]) -> None:
    steps, bands = list(curves), [interval(values) for values in curves.values()]
    mean, half = np.array([band.mean for band in bands]), np.nan_to_num([band.half for band in bands])
    axis.plot(steps, mean, label=compared()[name].title, color=_colour(name), linewidth=1.5)
    lowest = np.maximum(mean - half, mean / 10)  # a logarithmic scale has no room for what is not positive
    axis.fill_between(steps, lowest, mean + half, color=_colour(name), alpha=0.15, linewidth=0)


def plot_accuracy(accuracies: Mapping[str, Sequence[float]], path: Path) -> None:
    """Held-out accuracy: a stroke per run, the mean over seeds and its 95 % interval.

    Args:
        accuracies: of each method's runs, as shares.
        path: of the PNG.
    """
    figure, (axis,) = new_figure(1, 9, 0.45 * len(accuracies) + 1.4)
    for place, (name, shares) in enumerate(accuracies.items()):
        values = [100 * value for value in shares]
        found = interval(values)
        axis.errorbar(
            found.mean, place, xerr=np.nan_to_num(found.half), fmt="o", color=_colour(name), capsize=4, markersize=7
        )
        axis.plot(values, [place + 0.22] * len(values), "|", color=_colour(name), alpha=0.7)
    axis.set_yticks(range(len(accuracies)), [compared()[name].title for name in accuracies], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("held-out accuracy (%): mean and 95 % interval over seeds, a stroke for each run")
    axis.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def _colour(name: str) -> Any:
    return colormaps["tab20"](list(compared()).index(name))
