"""Tables and pictures from a run's own files, and what all of the house's pictures are drawn with.

A `Figure` of its own needs no screen and no global state of pyplot's: nothing has to be chosen before an import, and
nothing stays open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vopd_recipes.files.atomic import written_whole

_Place = Literal["best", "upper left", "upper right", "lower left"]

# Panels of the training picture: title, training series, evaluation series.
_PANELS = (
    ("reverse KL (nats per token)", "reverse_kl", "eval_reverse_kl"),
    ("held-out accuracy", None, "eval_accuracy"),
    ("standard deviation of the advantage", "advantage/std", None),
    ("gradient norm", "grad_norm", None),
    ("completion length (tokens)", "completion/length", "eval_completion_length"),
    ("entropy (nats per token)", "entropy", None),
)


class RunError(ValueError):
    """A folder that is not a run, or a run that has nothing to report: one line, what, where and what to do."""


def series(history: list[dict[str, Any]], name: str | None) -> tuple[list[int], list[float]]:
    """Steps and values of one metric in a trainer's log history."""
    points = [(line["step"], line[name]) for line in history if name in line]
    return [step for step, _ in points], [value for _, value in points]


def history_of(run: Path) -> list[dict[str, Any]]:
    """A finished run's log history.

    Raises:
        RunError: its trainer state does not hold one.
    """
    path = run / "trainer_state.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["log_history"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a trainer's state ({error})") from error


def names_of(runs: Sequence[Path]) -> list[str]:
    """What runs are called beside one another: a folder's name, behind as many above it as tell them apart."""
    places = [run.resolve().parts for run in runs]

    def name(place: tuple[str, ...]) -> str:
        tails = (place[-length:] for length in range(1, len(place) + 1))
        alone = (tail for tail in tails if all(other[-len(tail) :] != tail for other in places if other != place))
        return Path(*next(alone, place)).as_posix()

    return [name(place) for place in places]


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; all columns but the first are of numbers."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heading, *rows)]
    lines.insert(1, "|---|" + "--:|" * (len(heading) - 1))
    return "\n".join(lines)


def compare_runs(runs: list[Path]) -> str:
    """A Markdown table: held-out accuracy and reverse KL of each run, at its first and its last evaluation.

    Raises:
        RunError: a run that has logged nothing.
    """
    rows = []
    for run, name in zip(runs, names_of(runs)):
        history = history_of(run)
        if not history:
            raise RunError(f"{run}: its log history is empty; the run has logged nothing to report")
        cells = [name, str(history[-1]["step"])]
        for metric, form in (("eval_accuracy", "{:.1%}"), ("eval_reverse_kl", "{:.3f}")):
            _, values = series(history, metric)
            cells += [form.format(values[0]), form.format(values[-1])] if values else ["", ""]
        updates = [line for line in history if "time/train" in line]
        seconds = [line["time/rollout"] + line.get("time/sync", 0.0) + line["time/train"] for line in updates]
        cells.append(f"{median(seconds):.2f}" if seconds else "")
        rows.append(cells)
    heading = ["run", "steps", "accuracy before", "after", "reverse KL before", "after", "seconds a step"]
    return markdown_table(heading, rows)


def plot_comparison(runs: list[Path], path: Path) -> Path:
    """Draw several runs into the same panels."""
    histories = [(name, history_of(run)) for name, run in zip(names_of(runs), runs)]
    panels = (
        ("held-out accuracy", "eval_accuracy"),
        ("held-out reverse KL (nats per token)", "eval_reverse_kl"),
        ("standard deviation of the advantage", "advantage/std"),
    )
    figure, axes = new_figure(len(panels), 13, 3.6)
    for axis, (label, name) in zip(axes, panels):
        for run, history in histories:
            style = "o-" if name.startswith("eval") else "-"
            axis.plot(*series(history, name), style, label=run, linewidth=1.4, markersize=4)
        axis.set_ylim(bottom=0)
        finish_axis(axis, label, xlabel="step")
    return save_figure(figure, path)


def plot_training(history: list[dict[str, Any]], output_dir: Path, title: str = "") -> Path:
    """Draw `plots/training.png` from a log history; panels without data stay out."""
    drawn = [panel for panel in _PANELS if any(series(history, name)[0] for name in panel[1:])]
    rows = max(1, -(-len(drawn) // 3))
    figure, axes = new_figure(3, 13, 3.2 * rows, rows=rows)
    for axis in axes[len(drawn) :]:
        axis.axis("off")
    for axis, (label, training, evaluation) in zip(axes, drawn):
        for name, style, legend in ((training, "-", "training"), (evaluation, "o--", "held out")):
            steps, values = series(history, name)
            if steps:
                axis.plot(steps, values, style, label=legend, linewidth=1.4, markersize=4)
        finish_axis(axis, label, xlabel="step")
    figure.suptitle(title)
    return save_figure(figure, output_dir / "plots" / "training.png")


def new_figure(columns: int, width: float, height: float, rows: int = 1, **more: Any) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its panels, row by row."""
    figure = Figure((width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **more).flat)


def finish_axis(
    axis: Axes, title: str = "", *, legend: _Place | None = "best", columns: int = 1, **labels: Any
) -> None:
    """Title, labels, grid and, where one is wanted, the legend's place."""
    if title:
        axis.set_title(title, fontsize=10)
    axis.set(**labels)
    axis.grid(alpha=0.3)
    if legend:
        axis.legend(fontsize=8, loc=legend, ncols=columns)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path
