"""Pictures of what came of the runs: reverse KL over steps, and accuracy per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from vopd_recipes.evidence.intervals import interval
from vopd_recipes.evidence.outcome import Run, compared
from vopd_recipes.files import finish_axis, new_figure, save_figure, series

_TOP_K = tuple(name for name in compared() if name.startswith("vopd_topk_"))


_HELD_OUT, _TRAINING = "eval_reverse_kl", "reverse_kl"
_WINDOWS = 10  # of a training curve
_FEW = 5  # seeds: of fewer each run is drawn, because their band says more of Student's t than of them


def plot_curves(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Held-out reverse KL over steps, each method's mean over seeds in its 95 % band, on a logarithmic scale.

    Where runs were evaluated once, at their end, it is that of their own completions, a mean over a tenth of the run.

    Top-k baselines lie on vOPD's curve, or nearly: several of them have a panel of their own, vOPD beside them. The
    legend has the methods in the order in which their curves end.

    Args:
        runs: of each method, evaluated.
        path: of the PNG.
    """
    apart = _TOP_K if sum(name in runs for name in _TOP_K) > 1 else ()
    panels = [("", [name for name in runs if name not in apart])]
    if apart:
        panels.append(("top-k baselines", [name for name in runs if name == "vopd" or name in apart]))
    panels = [(title, names) for title, names in panels if names]
    held_out = any(len(shared_curves(of_method)) > 1 for of_method in runs.values())  # one evaluation is no curve
    figure, axes = new_figure(len(panels), 5 * len(panels) + 4, 4.8, sharey=True)
    ends: dict[str, tuple[float, Line2D]] = {}
    for axis, (title, names) in zip(axes, panels):
        for name in names:
            curves = shared_curves(runs[name]) if held_out else training_curves(runs[name])
            if not curves:
                continue
            line = _draw_curve(axis, name, curves)
            ends[name] = float(np.asarray(line.get_ydata())[-1]), line
        finish_axis(axis, title, legend=None, xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both")
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes[0].set_ylabel(f"{'held-out reverse' if held_out else 'reverse'} KL (nats per token)")
    lines = [line for _, line in sorted(ends.values(), key=lambda end: -end[0])]
    figure.legend(handles=lines, loc="outside right center", fontsize=8)
    save_figure(figure, path)


def shared_curves(runs: Sequence[Run], metric: str = _HELD_OUT) -> dict[int, list[float]]:
    """Step → the metric of every run, held-out reverse KL by default, at the steps at which all of them have it."""
    curves = [dict(zip(*series(run.history, metric))) for run in runs]
    return {step: [curve[step] for curve in curves] for step in curves[0] if all(step in curve for curve in curves)}


def training_curves(runs: Sequence[Run]) -> dict[int, list[float]]:
    """Last step of a tenth of the run → mean reverse KL of every run's own completions there."""
    curves = shared_curves(runs, _TRAINING)
    steps = list(curves)
    width = max(1, len(steps) // _WINDOWS)
    windows = [steps[first : first + width] for first in range(0, len(steps), width)]
    return {one[-1]: np.mean([curves[step] for step in one], axis=0).tolist() for one in windows}


def _draw_curve(axis: Axes, name: str, curves: Mapping[int, list[float]]) -> Line2D:
    steps, bands = list(curves), [interval(values) for values in curves.values()]
    mean, half = np.array([band.mean for band in bands]), np.nan_to_num([band.half for band in bands])
    (line,) = axis.plot(steps, mean, label=compared()[name].title, color=_colour(name), linewidth=1.5)
    seeds = np.array(list(curves.values())).T
    if len(seeds) < _FEW:
        for each in seeds:
            axis.plot(steps, each, color=_colour(name), linewidth=0.8, alpha=0.5)
        return line
    lowest = np.maximum(mean - half, mean / 10)  # a logarithmic scale has no room for what is not positive
    axis.fill_between(steps, lowest, mean + half, color=_colour(name), alpha=0.12, linewidth=0)
    return line


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
    axis.set_xlabel("held-out accuracy (%), 95 % interval; a stroke is a run")
    axis.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def _colour(name: str) -> Any:
    return colormaps["tab20"](list(compared()).index(name))
