"""What came of the runs: a table with confidence intervals over seeds, and paired tests.

Over n seeds, mean ± t·s/√n is the 95 % interval (Student's t with n-1 degrees of freedom). Methods are compared seed
by seed, because a seed decides the order of the prompts and the numbers that completions are drawn with: the interval
and the p-value of a difference are those of the paired t-test. Where that decides nothing, *seeds to tell* is how many
would, were the difference and its scatter what they are here: with a power of 80 %.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vopd_recipes.evidence.intervals import MOST, TOO_FEW, interval, paired
from vopd_recipes.evidence.outcome import Run, compared
from vopd_recipes.evidence.outcome_plots import plot_accuracy, plot_curves
from vopd_recipes.files import markdown_table, series, write_text
from vopd_recipes.recipe import RecipeError


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Args:
        accuracy: held out, at the last evaluation; `None` where prompts have no answers.
        reverse_kl: held out, nats per token, at the last evaluation.
        reverse_kl_stderr: the measure's own noise: its standard error over prompts.
        grad_norm: median over the steps; this and the two below are `None` where no step was logged.
        steps_to_target: the first evaluation at which the reverse KL is no greater than the target; `None`: never.
        last_step: of the last evaluation.
        seconds_per_step: median over the log lines of rollout, weight synchronisation and update.
        hours: of all steps, without evaluations.
    """

    accuracy: float | None
    reverse_kl: float
    reverse_kl_stderr: float | None
    grad_norm: float | None
    steps_to_target: int | None
    last_step: int
    seconds_per_step: float | None
    hours: float | None


def outcome_of(run: Run, target: float) -> Outcome:
    """Read a finished run."""
    history = run.history
    steps, values = series(history, "eval_reverse_kl")
    _, accuracies = series(history, "eval_accuracy")
    _, errors = series(history, "eval_reverse_kl_stderr")
    lines = [line for line in history if "time/train" in line]
    seconds = [line["time/rollout"] + line.get("time/sync", 0.0) + line["time/train"] for line in lines]  # a step's
    ends = [line["step"] for line in lines]
    counts = [end - before for end, before in zip(ends, [0, *ends])]  # steps that a line is the mean of
    return Outcome(
        accuracies[-1] if accuracies else None,
        values[-1],
        errors[-1] if errors else None,
        _median(series(history, "grad_norm")[1]),
        next((step for step, value in zip(steps, values) if value <= target), None),
        steps[-1],
        _median(seconds),
        sum(count * each for count, each in zip(counts, seconds)) / 3600 if seconds else None,
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def write_comparison(runs: Sequence[Run], output: Path, target: float | None = None) -> str:
    """Write `estimators.json`, `estimators.md` and two pictures to `output`; returns the Markdown.

    Args:
        runs: that were trained to their end.
        output: a folder.
        target: held-out reverse KL to reach, nats per token; default: the mean at which OPD ends.

    Raises:
        RecipeError: no two seeds of one method, or runs that were never evaluated.
    """
    evaluated = [run for run in runs if series(run.history, "eval_reverse_kl")[0]]
    left_out = [run.folder.name for run in runs if run not in evaluated]
    if left_out and not evaluated:
        raise RecipeError(
            f"{output}: no run was ever evaluated; the recipe needs held-out prompts and eval_strategy: steps"
        )
    by_method: dict[str, list[Run]] = {}
    for run in evaluated:
        by_method.setdefault(run.method.name, []).append(run)
    if all(len(of_method) < 2 for of_method in by_method.values()):
        raise RecipeError(f"{output}: no method has two finished seeds: nothing to compare")
    ordered = {name: by_method[name] for name in compared() if name in by_method}
    goal = target if target is not None else _default_target(ordered)
    outcomes = {name: {run.seed: outcome_of(run, goal) for run in of_method} for name, of_method in ordered.items()}
    text = _table(outcomes, goal)
    if left_out:
        text += f"\n\nLeft out, never evaluated: {', '.join(left_out)}."
    content = {
        "target": goal,
        "left_out": left_out,
        "methods": {name: {seed: asdict(o) for seed, o in by_seed.items()} for name, by_seed in outcomes.items()},
        "differences": _differences(outcomes),
    }
    for name, written in (("estimators.json", json.dumps(content, indent=2)), ("estimators.md", text)):
        write_text(output / name, written + "\n")
    plot_curves(ordered, output / "reverse-kl.png")
    if all(o.accuracy is not None for by_seed in outcomes.values() for o in by_seed.values()):
        accuracies = {name: _values(by_seed, lambda o: o.accuracy) for name, by_seed in outcomes.items()}
        plot_accuracy(accuracies, output / "accuracy.png")
    return text


def _default_target(ordered: dict[str, list[Run]]) -> float:
    """Where OPD ends on average, or the first method without OPD."""
    runs = ordered.get("opd") or next(iter(ordered.values()))
    return statistics.fmean(series(run.history, "eval_reverse_kl")[1][-1] for run in runs)


def _values(by_seed: dict[int, Outcome], read: Callable[[Outcome], float | None]) -> list[float]:
    return [value for outcome in by_seed.values() if (value := read(outcome)) is not None]


def _table(outcomes: dict[str, dict[int, Outcome]], target: float) -> str:
    heading = ["method", "seeds", "accuracy (%)", "reverse KL (nats/token)", "gradient norm"]
    heading += [f"steps to reverse KL ≤ {target:.3f}", "seconds a step"]
    rows = []
    for name, by_seed in outcomes.items():
        rows.append(
            [
                compared()[name].title,
                str(len(by_seed)),
                _mean_text(by_seed, lambda o: o.accuracy, "{:.1f}", 100),
                _mean_text(by_seed, lambda o: o.reverse_kl, "{:.4f}"),
                _mean_text(by_seed, lambda o: o.grad_norm, "{:.3f}"),
                _steps_text(by_seed),
                _mean_text(by_seed, lambda o: o.seconds_per_step, "{:.2f}"),
            ]
        )
    note = (
        "Mean ± half of the 95 % interval over seeds (Student's t); ≥: runs that did not get there count with\n"
        "the step of their last evaluation."
    )
    errors = [error for by_seed in outcomes.values() for error in _values(by_seed, lambda o: o.reverse_kl_stderr)]
    if errors:
        note += f" A run's reverse KL has a standard error of {statistics.median(errors):.4f}: another choice of\n"
        note += "held-out prompts and samples would move it by that; methods share the prompts and the samples' seeds."
    return "\n\n".join([_filled(heading, rows), note, *_difference_tables(outcomes)])


def _mean_text(
    by_seed: dict[int, Outcome], read: Callable[[Outcome], float | None], form: str, scale: float = 1.0
) -> str:
    """Mean and interval over the runs that have it; nothing where none has."""
    values = _values(by_seed, read)
    return interval(values).text(form, scale) if values else ""


def _filled(heading: list[str], rows: list[list[str]]) -> str:
    """The table less its empty columns: prompts without answers have no accuracy."""
    kept = [place for place, cells in enumerate(zip(*rows)) if any(cells)]
    return markdown_table([heading[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _steps_text(by_seed: dict[int, Outcome]) -> str:
    """Steps to the target, or how many they are at least where not every run came to it."""
    reached = _values(by_seed, lambda o: o.steps_to_target)
    if len(reached) == len(by_seed):
        return interval(reached).text("{:.0f}")
    at_least = statistics.fmean(_values(by_seed, _steps_at_least))
    return f"≥ {at_least:.0f} ({len(reached)} of {len(by_seed)} runs)"


def _steps_at_least(outcome: Outcome) -> int:
    return outcome.last_step if outcome.steps_to_target is None else outcome.steps_to_target


# Measure → heading, form of a difference, of half its interval, scale.
_MEASURES = {
    "accuracy": ("accuracy (points)", "{:+.1f}", "{:.1f}", 100),
    "reverse_kl": ("reverse KL", "{:+.4f}", "{:.4f}", 1),
    "steps_to_target": ("steps to target", "{:+.0f}", "{:.0f}", 1),
    "seconds_per_step": ("seconds a step", "{:+.2f}", "{:.2f}", 1),
}


def _differences(outcomes: dict[str, dict[int, Outcome]]) -> dict[str, Any]:
    """Reference → method → measure → difference, over the seeds that both have.

    A measure that any of these runs lacks is left out: over those alone that reached a target, it would flatter.
    """
    found: dict[str, Any] = {}
    for reference in ("opd", "vopd"):
        for name, by_seed in outcomes.items():
            seeds = sorted(by_seed.keys() & outcomes.get(reference, {}).keys())
            if name == reference or len(seeds) < 2:
                continue
            for measure in _MEASURES:
                ours = [getattr(by_seed[seed], measure) for seed in seeds]
                theirs = [getattr(outcomes[reference][seed], measure) for seed in seeds]
                if None not in ours + theirs:
                    found.setdefault(reference, {}).setdefault(name, {})[measure] = asdict(paired(ours, theirs))
    return found


def _difference_tables(outcomes: dict[str, dict[int, Outcome]]) -> Iterator[str]:
    for reference, methods in _differences(outcomes).items():
        heading = [f"minus {compared()[reference].title}, seed by seed"]
        heading += [word for measure, *_ in _MEASURES.values() for word in (measure, "p")]
        heading += ["seeds to tell the reverse KL"]
        rows = []
        for name, measures in methods.items():
            cells = [compared()[name].title]
            for measure in _MEASURES:
                cells += _difference_cells(measure, measures[measure]) if measure in measures else ["", ""]
            rows.append([*cells, _needed(measures["reverse_kl"])])
        yield _filled(heading, rows)
        if any(one["seeds"] <= TOO_FEW for measures in methods.values() for one in measures.values()):
            yield "2 seeds: too few for a difference's interval and p-value; three are the least, five are better."


def _needed(one: dict[str, Any]) -> str:
    """How many seeds would find a difference of this size in four cases of five."""
    if one["seeds"] <= TOO_FEW or not one["half"]:
        return ""
    return f"> {MOST}" if one["needed"] is None else str(one["needed"])


def _difference_cells(measure: str, one: dict[str, Any]) -> list[str]:
    """A difference with its interval, and its p-value; of too few seeds the difference alone."""
    _, form, half, scale = _MEASURES[measure]
    mean = form.format(scale * one["mean"])
    if one["seeds"] <= TOO_FEW:
        return [mean, f"{one['seeds']} seeds"]
    p = "< 0.001" if one["p"] < 0.001 else f"{one['p']:.3f}"
    return [f"{mean} ± {half.format(scale * one['half'])}", p]
