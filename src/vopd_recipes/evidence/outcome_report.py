"""What came of the runs: a table with confidence intervals over seeds, paired tests, and pictures.

Over n seeds, mean ± t·s/√n is the 95 % interval (Student's t with n-1 degrees of freedom). Methods are compared seed
by seed, because a seed decides the order of the prompts and the numbers that completions are drawn with: the interval
and the p-value of a difference are those of the paired t-test.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  # the backend is chosen first: no screen is needed
import numpy as np  # noqa: E402
from scipy import stats  # noqa: E402

from vopd_recipes.evidence.outcome import METHODS, Run  # noqa: E402
from vopd_recipes.recipe_text import RecipeError  # noqa: E402
from vopd_recipes.report import history_of, series  # noqa: E402
from vopd_recipes.whole import written_whole  # noqa: E402


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval."""

    mean: float
    half: float

    def text(self, form: str, scale: float = 1.0) -> str:
        """`mean ± half`, each times `scale`."""
        return f"{form.format(scale * self.mean)} ± {form.format(scale * self.half)}"


@dataclass(frozen=True)
class Difference:
    """Of a method from another, seed by seed: its 95 % interval and the paired t-test's p-value."""

    mean: float
    half: float
    p: float


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Args:
        accuracy: held out, at the last evaluation; `None` where prompts have no answers.
        reverse_kl: held out, nats per token, at the last evaluation.
        grad_norm: median over the steps.
        steps_to_target: the first evaluation at which the reverse KL is no greater than the target; `None`: never.
        seconds_per_step: median of rollout and update.
        hours: of all steps, without evaluations.
    """

    accuracy: float | None
    reverse_kl: float
    grad_norm: float
    steps_to_target: int | None
    seconds_per_step: float
    hours: float


def interval(values: Sequence[float]) -> Interval:
    """The 95 % interval of a mean; half its width is nan for a single value."""
    if len(values) < 2:
        return Interval(values[0], float("nan"))
    spread = statistics.stdev(values) / len(values) ** 0.5
    return Interval(statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Of `ours` from `theirs`, the same seed at the same place."""
    differences = [a - b for a, b in zip(ours, theirs)]
    found = interval(differences)
    p = 1.0 if not any(differences) else float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Difference(found.mean, found.half, p)


def outcome_of(run: Run, target: float) -> Outcome:
    """Read a finished run."""
    history = history_of(run.folder)
    steps, values = series(history, "eval_reverse_kl")
    _, accuracies = series(history, "eval_accuracy")
    seconds = [line["time/rollout"] + line["time/train"] for line in history if "time/train" in line]
    return Outcome(
        accuracies[-1] if accuracies else None,
        values[-1],
        statistics.median(series(history, "grad_norm")[1]),
        next((step for step, value in zip(steps, values) if value <= target), None),
        statistics.median(seconds),
        sum(seconds) / 3600,
    )


def write_report(runs: Sequence[Run], output: Path, target: float | None = None) -> str:
    """Write `estimators.json`, `estimators.md` and two pictures to `output`; returns the Markdown.

    Args:
        runs: that were trained to their end.
        output: a folder.
        target: held-out reverse KL to reach, nats per token; default: the mean at which OPD ends.

    Raises:
        RecipeError: no two seeds of one method, or runs that were never evaluated.
    """
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        if not series(history_of(run.folder), "eval_reverse_kl")[0]:
            raise RecipeError(
                f"{run.folder}: never evaluated; the recipe needs held-out prompts and eval_strategy: steps"
            )
        by_method.setdefault(run.method.name, []).append(run)
    if all(len(of_method) < 2 for of_method in by_method.values()):
        raise RecipeError(f"{output}: no method has two finished seeds: nothing to compare")
    ordered = {name: by_method[name] for name in METHODS if name in by_method}
    goal = target if target is not None else _default_target(ordered)
    outcomes = {name: {run.seed: outcome_of(run, goal) for run in of_method} for name, of_method in ordered.items()}
    text = _table(outcomes, goal)
    content = {
        "target": goal,
        "methods": {name: {seed: asdict(o) for seed, o in by_seed.items()} for name, by_seed in outcomes.items()},
        "differences": _differences(outcomes),
    }
    for name, written in (("estimators.json", json.dumps(content, indent=2)), ("estimators.md", text)):
        with written_whole(output / name) as temporary:
            temporary.write_text(written + "\n", encoding="utf-8")
    _plot_curves(ordered, output / "reverse-kl.png")
    if all(o.accuracy is not None for by_seed in outcomes.values() for o in by_seed.values()):
        _plot_accuracy(outcomes, output / "accuracy.png")
    return text


def _default_target(ordered: dict[str, list[Run]]) -> float:
    """Where OPD ends on average, or the first method without OPD."""
    runs = ordered.get("opd") or next(iter(ordered.values()))
    return statistics.fmean(series(history_of(run.folder), "eval_reverse_kl")[1][-1] for run in runs)


def _values(by_seed: dict[int, Outcome], read: Callable[[Outcome], float | None]) -> list[float]:
    return [value for outcome in by_seed.values() if (value := read(outcome)) is not None]


def _table(outcomes: dict[str, dict[int, Outcome]], target: float) -> str:
    lines = [
        "| method | seeds | accuracy (%) | reverse KL (nats/token) | gradient norm | "
        f"steps to reverse KL ≤ {target:.3f} | seconds a step |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, by_seed in outcomes.items():
        accuracy = _values(by_seed, lambda o: o.accuracy)
        reached = _values(by_seed, lambda o: o.steps_to_target)
        steps = "" if not reached else f"{statistics.fmean(reached):.0f}"
        cells = [
            METHODS[name].title,
            str(len(by_seed)),
            interval(accuracy).text("{:.1f}", 100) if accuracy else "",
            interval(_values(by_seed, lambda o: o.reverse_kl)).text("{:.4f}"),
            interval(_values(by_seed, lambda o: o.grad_norm)).text("{:.3f}"),
            steps if len(reached) == len(by_seed) else f"{steps} ({len(reached)} of {len(by_seed)} runs)".strip(),
            f"{statistics.median(_values(by_seed, lambda o: o.seconds_per_step)):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Mean ± half of the 95 % interval over seeds (Student's t)."]
    return "\n".join(lines + _difference_lines(outcomes))


def _differences(outcomes: dict[str, dict[int, Outcome]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Reference → method → measure → difference, over the seeds that both have."""
    found: dict[str, Any] = {}
    for reference in ("opd", "vopd"):
        for name, by_seed in outcomes.items():
            seeds = sorted(by_seed.keys() & outcomes.get(reference, {}).keys())
            if name == reference or len(seeds) < 2:
                continue
            for measure in ("accuracy", "reverse_kl"):
                ours = [getattr(by_seed[seed], measure) for seed in seeds]
                theirs = [getattr(outcomes[reference][seed], measure) for seed in seeds]
                if None not in ours + theirs:
                    found.setdefault(reference, {}).setdefault(name, {})[measure] = asdict(paired(ours, theirs))
    return found


def _difference_lines(outcomes: dict[str, dict[int, Outcome]]) -> list[str]:
    lines: list[str] = []
    for reference, methods in _differences(outcomes).items():
        lines += [
            "",
            f"| minus {METHODS[reference].title}, seed by seed | accuracy (points) | p | reverse KL | p |",
            "|---|--:|--:|--:|--:|",
        ]
        for name, measures in methods.items():
            cells = [METHODS[name].title]
            for measure, form, scale in (("accuracy", "{:+.1f} ± {:.1f}", 100), ("reverse_kl", "{:+.4f} ± {:.4f}", 1)):
                one = measures.get(measure)
                cells += (
                    [form.format(scale * one["mean"], scale * one["half"]), _p_text(one["p"])] if one else ["", ""]
                )
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _colour(name: str) -> Any:
    return plt.get_cmap("tab10")(list(METHODS).index(name))


def _plot_curves(ordered: dict[str, list[Run]], path: Path) -> None:
    """Held-out reverse KL over steps: the mean over seeds and its 95 % band, on a logarithmic scale."""
    figure, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
    for name, runs in ordered.items():
        curves = [series(history_of(run.folder), "eval_reverse_kl") for run in runs]
        steps = curves[0][0]
        values = np.array([curve for at, curve in curves if at == steps])
        bands = [interval(column) for column in values.T.tolist()]
        mean, half = np.array([b.mean for b in bands]), np.nan_to_num([b.half for b in bands])
        axis.plot(steps, mean, label=METHODS[name].title, color=_colour(name), linewidth=1.5)
        axis.fill_between(
            steps, np.maximum(mean - half, 1e-4), mean + half, color=_colour(name), alpha=0.15, linewidth=0
        )
    axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("held-out reverse KL (nats per token)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, ncols=2)
    _save(figure, path)


def _plot_accuracy(outcomes: dict[str, dict[int, Outcome]], path: Path) -> None:
    """Held-out accuracy: a point per run, the mean over seeds and its 95 % interval."""
    figure, axis = plt.subplots(figsize=(9, 0.45 * len(outcomes) + 1.4), layout="constrained")
    for place, (name, by_seed) in enumerate(outcomes.items()):
        values = [100 * value for value in _values(by_seed, lambda o: o.accuracy)]
        found = interval(values)
        axis.errorbar(
            found.mean, place, xerr=np.nan_to_num(found.half), fmt="o", color=_colour(name), capsize=4, markersize=7
        )
        axis.plot(values, [place + 0.22] * len(values), "|", color=_colour(name), alpha=0.7)
    axis.set_yticks(range(len(outcomes)), [METHODS[name].title for name in outcomes], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("held-out accuracy (%): mean and 95 % interval over seeds, a stroke for each run")
    axis.grid(axis="x", alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
