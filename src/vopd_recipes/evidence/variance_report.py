"""A measured variance as files: all figures (JSON), a page to paste (Markdown) and a picture (PNG)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from vopd_recipes.evidence.gradients import METHODS, SAMPLED
from vopd_recipes.evidence.intervals import with_interval
from vopd_recipes.files import finish_axis, markdown_table, new_figure, save_figure, write_text


def write_variance(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write `variance.json`, `variance.md` and `variance.png`, each whole."""
    paths = [folder / f"variance.{suffix}" for suffix in ("json", "md", "png")]
    for path, text in zip(paths, (json.dumps(found, indent=2, allow_nan=False), variance_table(found))):
        write_text(path, text + "\n")
    draw_report(found, paths[-1])
    return paths


def variance_table(found: dict[str, Any]) -> str:
    """What was measured, in a sentence and two tables."""
    heading = (
        f"{found['draws']} draws of completions of {found['prompts']} prompts "
        f"({found['tokens_per_draw']:.0f} tokens a draw, each drawn anew {found['redraws']} times), "
        f"k = {found['support_top_k']} on the {found['support']}'s support. Variances are ratios to OPD's "
        "(`none`); 95 % intervals in brackets. *Excluded above*: the smallest bias, as a share of the gradient's "
        "length, whose square lies above the interval (around 0 where the estimate is negative). *Own tokens*: the "
        "same with the tokens of the rollout."
    )
    return "\n\n".join([heading, overview(found), by_layer_type(found)])


def _measured(names: tuple[str, ...], found: dict[str, Any]) -> list[str]:
    """Those of the table that were there when it was measured."""
    return [name for name in names if name in found["methods"]]


def overview(found: dict[str, Any]) -> str:
    """Per estimator: variance given the contexts, both predictions of it, variance in total, bias."""
    heading = ["estimator", "given the contexts", "predicted, logits", "predicted, reward (Eq. 11)", "head / exact"]
    heading += ["in total", "bias² / ‖∇‖²", "excluded above", "bias², own tokens"]
    rows = []
    for name in _measured(METHODS, found):
        method = found["methods"][name]
        predicted = method.get("predicted")
        rows.append(
            [
                f"`{name}`",
                with_interval(method["conditional"]["ratio"]["total"]) if predicted else "0",
                f"{predicted['logits']:.2f}" if predicted else "0",
                (f"{predicted['reward']:.2f}" if "reward" in predicted else "") if predicted else "0",
                with_interval(method["head"]) if "head" in method else "",
                with_interval(method["total"]["ratio"]["total"]),
                with_interval(method["squared_bias"]["total"], ".2g") if "squared_bias" in method else "0",
                f"{100 * _excluded(method['squared_bias']['total']):.1f} %" if predicted else "",
                with_interval(method["squared_bias_own"]["total"], ".2g") if predicted else "",
            ]
        )
    return markdown_table(heading, rows)


def by_layer_type(found: dict[str, Any]) -> str:
    """Per estimator and layer type: variance given the contexts / in total."""
    kinds = [*found["parameters"], "total"]
    rows = []
    for name in _measured(METHODS, found):
        method = found["methods"][name]
        given = method.get("conditional")
        cells = [
            f"{given['ratio'][kind]['value'] if given else 0:.2f} / {method['total']['ratio'][kind]['value']:.2f}"
            for kind in kinds
        ]
        rows.append([f"`{name}`", *cells])
    return markdown_table(["given the contexts / in total", *kinds], rows)


def _excluded(squared_bias: dict[str, float]) -> float:
    """The length of a bias, as a share of the gradient's, above which the interval of its square excludes it."""
    half = squared_bias["high"] - squared_bias["value"]
    return (max(squared_bias["value"], 0) + half) ** 0.5


def draw_report(found: dict[str, Any], path: Path) -> Path:
    """Three panels: variance against its prediction, the same by layer type, and bias."""
    figure, axes = new_figure(3, 17, 5.5)
    _draw_variances(axes[0], found)
    _draw_layer_types(axes[1], found)
    _draw_bias(axes[2], found)
    figure.suptitle(
        f"{found['draws']} draws, {found['tokens_per_draw']:.0f} tokens each, k = {found['support_top_k']}; "
        "bars: 95 % intervals",
        fontsize=10,
    )
    return save_figure(figure, path)


def _points(axis: Axes, places: list[float], measured: list[dict[str, Any]], style: str, label: str) -> None:
    values = [one["value"] for one in measured]
    ends = [
        one if one["low"] is not None else dict.fromkeys(("value", "low", "high"), one["value"]) for one in measured
    ]
    below = [max(one["value"] - one["low"], 0) for one in ends]
    above = [max(one["high"] - one["value"], 0) for one in ends]
    axis.errorbar(places, values, yerr=[below, above], fmt=style, markersize=5, capsize=3, label=label)


def _draw_variances(axis: Axes, found: dict[str, Any]) -> None:
    methods, sampled, every = found["methods"], _measured(SAMPLED, found), _measured(METHODS, found)
    given = [methods[name]["conditional"]["ratio"]["total"] for name in sampled]
    _points(axis, [place - 0.12 for place in range(len(sampled))], given, "o", "given the contexts")
    predicted = [methods[name]["predicted"]["logits"] for name in sampled]
    axis.plot(range(len(sampled)), predicted, "k_", markersize=22, label="predicted from the logits")
    total = [methods[name]["total"]["ratio"]["total"] for name in every]
    _points(axis, [place + 0.12 for place in range(len(every))], total, "s", "in total")
    axis.set_xticks(range(len(every)), every, rotation=60, ha="right")
    _finish(axis, "variance of the parameter gradient / OPD's")


def _draw_layer_types(axis: Axes, found: dict[str, Any]) -> None:
    kinds = [*found["parameters"], "total"]
    shown = [name for name in _measured(SAMPLED, found) if name != "none"]
    for index, name in enumerate(shown):
        ratios = found["methods"][name]["conditional"]["ratio"]
        places = [place + 0.7 * ((index + 0.5) / len(shown) - 0.5) for place in range(len(kinds))]
        _points(axis, places, [ratios[kind] for kind in kinds], "o", name)
    axis.set_xticks(range(len(kinds)), kinds, rotation=30)
    _finish(axis, "given the contexts, by layer type")


def _draw_bias(axis: Axes, found: dict[str, Any]) -> None:
    shown = [name for name in _measured(METHODS, found) if "squared_bias" in found["methods"][name]]
    biases = [found["methods"][name]["squared_bias"]["total"] for name in shown]
    _points(axis, list(range(len(shown))), biases, "o", "total")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(shown)), shown, rotation=60, ha="right")
    finish_axis(axis, "squared bias / squared length of the gradient", legend=None)


def _finish(axis: Axes, title: str) -> None:
    axis.set_ylim(0, 1.3 * axis.get_ylim()[1])  # room for the legend
    finish_axis(axis, title, legend="upper right", columns=2)
