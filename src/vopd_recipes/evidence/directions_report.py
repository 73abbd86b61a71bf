"""What was measured along directions, as files: figures (JSON), tables to paste (Markdown) and a picture (PNG)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vopd_recipes.evidence.kept import five_digits
from vopd_recipes.evidence.measurement import KS, SUPPORTS
from vopd_recipes.files import finish_axis, markdown_table, new_figure, save_figure, write_text
from vopd_recipes.loss import METHODS

_ENDS = ("low", "high")  # of an interval


def write_directions(found: dict[str, Any], folder: Path) -> str:
    """Write `directions.json`, `directions.md` and `directions.png`; returns the Markdown."""
    text = directions_table(found)
    write_text(folder / "directions.json", json.dumps(five_digits(found), indent=1, allow_nan=False) + "\n")
    write_text(folder / "directions.md", text + "\n")
    draw_directions({Path(str(found["student"])).name: found}, folder / "directions.png")
    return text


def draw_directions(of_students: Mapping[str, dict[str, Any]], path: Path) -> Path:
    """Measured against predicted variance given the contexts, over OPD's: a panel for each student.

    A point for each method, support and k; a bar is its 95 % interval, from three pairs of draws; on the line the
    prediction is right.

    Args:
        of_students: title → what `directions.measure_directions` returned.
        path: of the PNG.
    """
    kinds = {"sampled": "o", "rao_blackwell": "s"}
    every = [column for found in of_students.values() for column in found["columns"].values() if "given" in column]
    values = [value for column in every for value in (column["predicted"], column["given"]["value"]) if value > 0]
    ends = [min(values) / 1.2, max(values) * 1.2]
    figure, axes = new_figure(len(of_students), 4.6 * len(of_students), 4.6, sharey=True)
    for axis, (title, found) in zip(axes, of_students.items()):
        columns = {name: column for name, column in found["columns"].items() if "given" in column and name != "none"}
        for divergence, marker in kinds.items():
            keys = {row.key for row in METHODS.values() if row.divergence == divergence}
            chosen = [column for name, column in columns.items() if name.split("/")[0] in keys]
            measured = [column["given"]["value"] for column in chosen]
            bars = [[abs(c["given"].get(end, value) - value) for c, value in zip(chosen, measured)] for end in _ENDS]
            axis.errorbar(
                [column["predicted"] for column in chosen], measured, yerr=bars,
                fmt=marker, markersize=4, capsize=2, linewidth=1, alpha=0.8, label=divergence,
            )  # fmt: skip
        axis.plot(ends, ends, color="grey", linewidth=1, linestyle=":", label="as predicted")
        axis.set_xlim(*ends)
        axis.set_ylim(*ends)
        finish_axis(axis, title, xscale="log", yscale="log", xlabel="predicted from the logits, over OPD's")
    axes[0].set_ylabel("variance of the parameter gradient, over OPD's")
    return save_figure(figure, path)


def directions_table(found: dict[str, Any]) -> str:
    """A row for each method, a column for each support and k: given the contexts, in total, and what is biased."""
    heading = (
        f"{found['draws']} draws of completions of {found['prompts']} prompts ({found['tokens_per_draw']:.0f} tokens "
        f"a draw), {found['directions']} directions a pair of draws, {found['parameters']:,} parameters. Variance of "
        "the parameter gradient over OPD's, ± half of the 95 % interval over pairs (from three on); in brackets the "
        "prediction from the logits. Where a method has no support, its one figure stands first."
    )
    tables = [heading]
    for kind, title in (("given", "given the contexts"), ("total", "in total")):
        tables.append(_table(found["columns"], kind, title))
    biases = {name: column["squared_bias"] for name, column in found["columns"].items() if "squared_bias" in column}
    rows = [[f"`{name}`", _plus_minus(one)] for name, one in biases.items()]
    return "\n\n".join([*tables, markdown_table(["bias² / ‖∇‖²", ""], rows)])


def students_table(of_students: Mapping[str, dict[str, Any]], k: int = 20) -> str:
    """Variance given the contexts, and its prediction, at one k: a row for each method, a column for each support.

    Args:
        of_students: title → what `directions.measure_directions` returned.
        k: one of `measurement.KS`.
    """
    heads = [f"{title}: {support}'s {k}" for title in of_students for support in SUPPORTS]
    rows = []
    for row in METHODS.values():
        cells = []
        for found in of_students.values():
            one = found["columns"].get(row.key, {})
            per_support = [found["columns"].get(f"{row.key}/{support}/{k}", {}) for support in SUPPORTS]
            chosen = [one, {}] if "given" in one else per_support
            cells += [f"{c['given']['value']:.2f} ({c['predicted']:.2f})" if "given" in c else "" for c in chosen]
        if any(cells):
            rows.append([f"`{row.key}`", *cells])
    return markdown_table([f"given the contexts, k = {k}", *heads], rows)


def _table(columns: dict[str, Any], kind: str, title: str) -> str:
    places = [f"/{support}/{k}" for support in SUPPORTS for k in KS]
    rows = []
    for row in METHODS.values():
        cells = [_cell(columns.get(row.key + place), kind) for place in ("", *places)]
        first, rest = cells[0], cells[1:]
        if any(cells):
            rows.append([f"`{row.key}`", *([first, *[""] * (len(rest) - 1)] if first else rest)])
    heads = [f"{support}'s {k}" for support in SUPPORTS for k in KS]
    return markdown_table([title, *heads], rows)


def _cell(column: dict[str, Any] | None, kind: str) -> str:
    if column is None or kind not in column:
        return ""
    predicted = f" ({column['predicted']:.2f})" if kind == "given" else ""
    return _plus_minus(column[kind]) + predicted


def _plus_minus(measured: dict[str, float]) -> str:
    """The value, and half of its interval where it has one."""
    if "low" not in measured:
        return f"{measured['value']:.2f}"
    half = (measured["high"] - measured["low"]) / 2
    digits = max(2, 1 - math.floor(math.log10(half))) if 0 < half < 1 else 2
    return f"{measured['value']:.{min(digits, 4)}f} ± {half:.{min(digits, 4)}f}"
