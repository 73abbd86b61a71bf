"""What was measured of the baselines, as files: figures (JSON), tables to paste (Markdown) and a picture (PNG)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vopd_recipes.evidence.baselines import MASSES
from vopd_recipes.evidence.gradients import SAMPLED
from vopd_recipes.evidence.intervals import with_interval
from vopd_recipes.evidence.kept import five_digits
from vopd_recipes.evidence.measurement import SUPPORTS
from vopd_recipes.files import finish_axis, markdown_table, new_figure, save_figure, write_text
from vopd_recipes.loss import METHODS

_WIDEST, _BINS = 6.0, 96  # of the histograms, nats
_TOKENS = {"reward": "reward r (OPD)", "advantage": "advantage r + KL (vOPD)"}  # of every token: as histograms
_WITH_SUPPORT = {row.key for row in METHODS.values() if row.has_support}


def write_baselines(found: dict[str, Any], folder: Path) -> str:
    """Write `baselines.json`, `baselines.md` and `baselines.png`; returns the Markdown."""
    kept = five_digits(kept_of(found))
    text = baselines_table(kept)
    write_text(folder / "baselines.json", json.dumps(kept, allow_nan=False) + "\n")
    write_text(folder / "baselines.md", text + "\n")
    draw_baselines(kept, folder / "baselines.png")
    return text


def kept_of(found: dict[str, Any]) -> dict[str, Any]:
    """What `baselines.measure_baselines` returned, with histograms for the tokens' own values; its keys are text."""
    tokens = {name: torch.tensor(found[f"{name}s"]) for name in _TOKENS}
    edges = torch.linspace(-_WIDEST, _WIDEST, _BINS + 1)
    counts = {
        name: torch.histogram(values.float().clamp(-_WIDEST, _WIDEST), edges).hist.int().tolist()
        for name, values in tokens.items()
    }
    rest = {name: value for name, value in found.items() if name not in ("rewards", "advantages")}
    rest["variances"] = {
        of: {str(k): by_name for k, by_name in by_k.items()} for of, by_k in rest["variances"].items()
    }
    spread = {name: values.std().item() for name, values in tokens.items()}
    return rest | {"std": spread, "edges": edges.tolist(), "counts": counts}


def baselines_table(kept: dict[str, Any]) -> str:
    """What was measured, in sentences and two tables."""
    return (
        f"{kept['tokens']:,} tokens of {kept['completions']:,} completions; 95 % intervals over completions in "
        "brackets. Mean |b̂_k − V|, nats; without a baseline it is the mean of |V|.\n\n"
        f"{errors_table({'': kept})}\n\n"
        f"Standard deviation of the reward {kept['std']['reward']:.2f}, of the advantage "
        f"{kept['std']['advantage']:.2f}; E[(r − V)²] / E[r²] {with_interval(kept['squared_ratio'])}. The hundredth "
        f"of the completions (one at least) that have most of Σ|V| have {kept['largest_share']:.0%} of it.\n\n"
        "Exact variance of the logit gradient over OPD's (`none`), and both models' mean mass on the support, which "
        "is the student's or the teacher's top k. Where a method has no support, its one figure stands first.\n\n"
        f"{logit_variances_table(kept)}"
    )


def errors_table(of_pairs: Mapping[str, dict[str, Any]]) -> str:
    """Mean |b̂_k − V| against k: two columns, of the student's and the teacher's top k, for each pair of models.

    Args:
        of_pairs: title → `kept_of`.
    """
    heads = [f"{title}, {of}'s top k".removeprefix(", ") for title in of_pairs for of in SUPPORTS]
    columns = []
    for kept in of_pairs.values():
        for support in SUPPORTS:
            none = with_interval(kept["value"], ".3f")
            columns.append({"none": none, **{str(k): _error(one) for k, one in kept["errors"][support]}})
    ks = max(columns, key=len)
    return markdown_table(["k", *heads], [[k, *(column.get(k, "") for column in columns)] for k in ks])


def _error(measured: dict[str, float]) -> str:
    return with_interval(measured, ".4f" if measured["value"] < 0.01 else ".3f")


def logit_variances_table(kept: dict[str, Any]) -> str:
    """A row for each method that samples and each mass, a column for each support and k."""
    columns = [(f"{of}'s {k}", by_name) for of, by_k in kept["variances"].items() for k, by_name in by_k.items()]
    rows = []
    for name in SAMPLED + MASSES:
        if any(name not in by_name for _, by_name in columns):
            continue  # a method that came after the measurement
        cells = [with_interval(by_name[name]) for _, by_name in columns]
        if name not in _WITH_SUPPORT and name not in MASSES:
            cells[1:] = [""] * (len(cells) - 1)
        rows.append([f"`{name}`", *cells])
    return markdown_table(["over OPD's", *(heading for heading, _ in columns)], rows)


def draw_baselines(kept: dict[str, Any], path: Path) -> Path:
    """Two panels: the top-k baseline's error against k, and reward and advantage of the same tokens."""
    figure, (left, right) = new_figure(2, 11, 4)
    for support, style in zip(SUPPORTS, ("o-", "s--")):
        points = [(k, measured["value"]) for k, measured in kept["errors"][support]]
        left.plot(*zip(*points), style, label=f"the {support}'s top k", markersize=4)
    left.axhline(
        kept["value"]["value"], color="grey", linewidth=1, linestyle=":", label="mean |V|: no baseline at all"
    )
    for name, title in _TOKENS.items():
        label = f"{title}, std {kept['std'][name]:.2f}"
        right.stairs(kept["counts"][name], kept["edges"], fill=True, alpha=0.55, label=label)
    left.set_title("Error of the top-k baseline")
    right.set_title("Reward and advantage")
    finish_axis(left, legend="lower left", xscale="log", yscale="log", xlabel="k", ylabel="mean |b̂ₖ − V| (nats)")
    beyond = "nats (ends hold what lies beyond)"
    finish_axis(right, legend="upper left", yscale="log", xlabel=beyond, ylabel="tokens")
    right.set_ylim(top=20 * right.get_ylim()[1])  # room for the legend above the bars
    return save_figure(figure, path)
