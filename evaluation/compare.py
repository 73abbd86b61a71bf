"""Results side by side: a table with paired-bootstrap confidence intervals, and a bar chart.

Two models that answered the same questions are compared question by question. With d_i the difference of the two
models' mean correctness on question i, the questions are drawn anew, with replacement, 10,000 times; the 2.5th and
97.5th percentiles of the mean of d are the 95 % interval of the difference. Which questions are hard then cancels out,
which two separate error bars do not do. An interval that leaves 0 out is marked with a star.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from vopd_recipes.files import markdown_table, new_figure, read_results, save_figure, title_of, write_text
from vopd_recipes.recipe import RecipeError, one_line

_SEED = 0


class Compared(NamedTuple):
    """Results as they were when they were read: an evaluation may write their file anew before they are compared.

    Args:
        path: of the results file.
        content: of the results file.
        means: task → prompt → share of its samples that are right.
        note: for the label, after a space.
    """

    path: Path
    content: dict[str, Any]
    means: dict[str, dict[str, float]]
    note: str = ""


def read_compared(path: Path) -> Compared:
    """A results file and the details beside it.

    Raises:
        RecipeError: it is no results file, or the details of a task are not there.
    """
    if not path.is_file():
        raise RecipeError(f"COMPARE: no such file: {path}")
    content = read_results(path)
    return Compared(path, content, {task: _question_means(path, task) for task in content["tasks"]})


def beside(compared: list[Compared], path: Path) -> list[Compared]:
    """These and the results at `path`; what was read there before is called so."""
    place = path.resolve()
    before = [one._replace(note=" (before)") if one.path.resolve() == place else one for one in compared]
    return [*before, read_compared(path)]


def compare(compared: list[Compared], output: Path) -> str:
    """Compare results with the first; writes `<output>.md` and `<output>.png`, returns the Markdown.

    Raises:
        RecipeError: fewer than two results, or no task that the first has as well.
    """
    if len(compared) < 2:
        raise RecipeError("COMPARE: two results files or more make a comparison: COMPARE=a.json,b.json")
    results, labels = [one.content for one in compared], _labels(compared)
    tasks = [name for name in results[0]["tasks"] if any(name in other["tasks"] for other in results[1:])]
    if not tasks:
        raise RecipeError(f"COMPARE: {compared[0].path} and the others have no task in common")
    text = _table(compared, labels, tasks)
    write_text(output.with_suffix(".md"), text + "\n")
    _plot(results, labels, tasks, output.with_suffix(".png"))
    return f"{text}\n\nwritten: {output.with_suffix('.md')}, {output.with_suffix('.png')}"


def _labels(compared: list[Compared]) -> list[str]:
    """The shortest names that tell the results apart."""
    forms = (
        "{model}",
        "{model} {revision}",
        "{model} {revision} {protocol}",
        "{model} {revision} {protocol} {backend}",
    )
    named = [[form.format(**one.content) for one in compared] for form in forms]
    noted = [[label + one.note for label, one in zip(labels, compared)] for labels in named]
    for told_apart, labels in zip([*named, *noted], [*noted, *noted]):  # a note tells apart what nothing else does
        if len(set(told_apart)) == len(compared):
            return labels
    return [f"{number}: {label}" for number, label in enumerate(noted[-1], 1)]


def _table(compared: list[Compared], labels: list[str], tasks: list[str]) -> str:
    results = [one.content for one in compared]
    head = ["task", f"{labels[0]}: avg@n ± s.e."]
    for label in labels[1:]:
        head += [f"{label}: avg@n ± s.e.", "difference [95 %]"]
    rows = []
    notes: list[str] = []
    for task in tasks:
        cells = [title_of(task, results[0]["tasks"][task]), _score(results[0], task)]
        for other, label in zip(compared[1:], labels[1:]):
            cells.append(_score(other.content, task))
            cells.append(_difference(compared[0], other, task, label, notes) if task in other.means else "")
        rows.append(cells)
    protocols = {(content["protocol"], content["backend"], content["dtype"]) for content in results}
    if len(protocols) > 1:
        listed = "; ".join(" ".join(protocol) for protocol in sorted(protocols))
        notes.append(f"Measured in different ways ({listed}): a difference may be the way's.")
    for content, label in zip(results, labels):
        if alone := [name for name in content["tasks"] if name not in tasks]:
            notes.append(f"Not compared: {label} also has {', '.join(alone)}.")
    return "\n".join(
        [markdown_table(head, rows), "", f"Percent; differences from {labels[0]}, * where 0 is outside.", *notes]
    )


def _score(content: dict[str, Any], task: str) -> str:
    scores = content["tasks"].get(task)
    return f"{100 * scores['avg']:.1f} ± {100 * scores['stderr']:.1f}" if scores else ""


def _difference(first: Compared, other: Compared, task: str, label: str, notes: list[str]) -> str:
    ours, theirs = first.means[task], other.means[task]
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        notes.append(f"{task}, {label}: no question in common.")
        return ""
    if len(shared) < max(len(ours), len(theirs)):
        notes.append(f"{task}, {label}: {len(shared)} questions in common, the difference is over these.")
    differences = np.array([theirs[question] - ours[question] for question in shared])
    low, high = bootstrap_interval(differences)
    star = "*" if low > 0 or high < 0 else ""
    return f"{100 * differences.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]{star}"


def _question_means(path: Path, task: str) -> dict[str, float]:
    """Prompt → share of its samples that are right, from the details beside a results file."""
    details = path.parent / "details" / f"{task}.parquet"
    if not details.is_file():
        raise RecipeError(f"COMPARE: {details} is missing: the comparison goes question by question")
    try:
        rows = pq.read_table(details, columns=["prompt", "correct"])
    except (pa.ArrowException, OSError) as error:
        raise RecipeError(
            f"COMPARE: {details} cannot be read ({one_line(error, 200)}); evaluate {task} again: the answers are kept"
        ) from None
    grouped = rows.group_by("prompt").aggregate([("correct", "mean")])
    return dict(zip(grouped["prompt"].to_pylist(), grouped["correct_mean"].to_pylist()))


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean, by drawing its [Q] terms anew; the same for the same terms."""
    if len(differences) == 1:
        return float(differences[0]), float(differences[0])
    batch = max(1, 4_000_000 // len(differences))  # 32 MB of indices at a time
    drawn = stats.bootstrap((differences,), np.mean, n_resamples=10_000, batch=batch, method="percentile", rng=_SEED)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def _plot(results: list[dict[str, Any]], labels: list[str], tasks: list[str], path: Path) -> None:
    """Bars of avg@n with 95 % intervals (1.96 standard errors), a group for each task."""
    figure, (axis,) = new_figure(1, max(5.0, 1.6 * len(tasks) + 2), 4.2)
    width, first = 0.8 / len(results), [(task, results[0]["tasks"][task]) for task in tasks]
    for number, (content, label) in enumerate(zip(results, labels)):
        there = [(place, content["tasks"][task]) for place, task in enumerate(tasks) if task in content["tasks"]]
        axis.bar(
            [place + (number - (len(results) - 1) / 2) * width for place, _ in there],
            [100 * scores["avg"] for _, scores in there],
            width,
            yerr=[196 * scores["stderr"] for _, scores in there],
            capsize=3,
            label=label,
        )
    titles = [f"{title_of(task, scores)}\navg@{scores['n']}" for task, scores in first]
    axis.set_xticks(range(len(tasks)), titles, fontsize=8)
    axis.set_ylabel("accuracy (%)")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)
