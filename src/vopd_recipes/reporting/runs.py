"""A run's folder becomes a checked record, and records of the same recipe become one method.

Two runs are seeds of one method when their resolved recipes agree in everything but the seed and where the run is
kept. A run that has not finished is read at its last complete checkpoint, which is all that a killed one keeps, or,
where somebody follows it, at its last log line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from vopd_recipes.files import METRICS, RECIPE, RunError, last_complete_checkpoint, names_of, series
from vopd_recipes.loss import Estimator

# Fields that tell seeds of one method apart.
_SEED_FIELDS = frozenset({"seed", "data_seed", "output_dir", "run_name"})
_STATE = "trainer_state.json"
# Parts of a step that the trainer times, in the order in which they happen.
TIMES = ("rollout", "sync", "teacher", "student", "optimizer")


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Args:
        folder: the run.
        name: what it is called on the page; unique there.
        finished: whether it came to its end.
        state_folder: where its tokenizer is: the run, its last complete checkpoint, or where the student came from.
        recipe: the resolved recipe.
        recipe_text: the same as it is on disk.
        environment: versions and hardware; empty where the run has no such file.
        history: the trainer's log lines.
        step: optimiser steps done.
        planned: optimiser steps that the recipe asks for; 0 where a run that is followed has not said so yet.
    """

    folder: Path
    name: str
    finished: bool
    state_folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    history: list[dict[str, Any]]
    step: int
    planned: int

    @property
    def estimator(self) -> Estimator:
        """The estimator of the recipe."""
        names = {item.name for item in fields(Estimator)}
        return Estimator(**{name: value for name, value in self.recipe.items() if name in names})

    @property
    def method(self) -> str:
        """The estimator's name in the literature."""
        return self.estimator.method.title

    def series(self, name: str) -> dict[int, float]:
        """Step → value of a metric, where it is a finite number."""
        steps, values = series(self.history, name)
        return {
            step: float(value)
            for step, value in zip(steps, values)
            if isinstance(value, (int, float)) and math.isfinite(value)
        }

    def ends(self, name: str) -> tuple[float | None, float | None]:
        """A metric at its first and at its last step; the first is `None` where there is only one."""
        values = list(self.series(name).values())
        return (values[0] if len(values) > 1 else None, values[-1] if values else None)

    @property
    def seconds_per_step(self) -> float | None:
        """The median over log lines of rollout, weight synchronisation and update."""
        rollout, sync, train = (self.series(f"time/{name}") for name in ("rollout", "sync", "train"))
        steps = rollout.keys() & train.keys()
        return median(rollout[step] + sync.get(step, 0.0) + train[step] for step in steps) if steps else None

    @property
    def time_breakdown(self) -> dict[str, float]:
        """Mean seconds a step of each of `TIMES`; empty where the run did not log them."""
        found = {name: self.series(f"time/{name}") for name in TIMES}
        return {name: fmean(values.values()) for name, values in found.items() if values}

    @property
    def variance_ratios(self) -> dict[str, float]:
        """Each estimator's gradient variance over OPD's, both averaged over the log lines; empty if not logged."""
        prefix = "gradient_variance/"
        names = sorted({name for line in self.history for name in line if name.startswith(prefix)})
        means = {name[len(prefix) :]: fmean(self.series(name).values()) for name in names if self.series(name)}
        opd = means.get("none", 0.0)
        return {name: mean / opd for name, mean in means.items()} if opd else {}


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in their seeds."""

    label: str
    method: str
    runs: tuple[Run, ...]

    @property
    def recipe(self) -> dict[str, Any]:
        """The first run's recipe."""
        return self.runs[0].recipe


def check_is_run(folder: Path) -> None:
    """Whether a run has begun there.

    Raises:
        RunError: it has not.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; name the output_dir of a run")
    if not (folder / RECIPE).is_file():
        raise RunError(f"{folder}: not a run (no {RECIPE} in it); name the output_dir of a run")


def is_finished(folder: Path) -> bool:
    """Whether the run there came to its end."""
    return (folder / _STATE).is_file()


def read_run(folder: Path, live: bool = False) -> Run:
    """Read and check a run's folder.

    Args:
        folder: of the run.
        live: read one that has not finished at its last log line, not at its last complete checkpoint.

    Raises:
        RunError: not a run, nothing logged yet, or a file in it that does not hold what it should.
    """
    check_is_run(folder)
    finished = is_finished(folder)
    state_folder = folder if finished else last_complete_checkpoint(folder)
    if state_folder is None and not live:
        raise RunError(f"{folder}: the run has no {_STATE} and no complete checkpoint yet; wait for its first one")
    recipe_text = _text(folder / RECIPE)
    try:
        recipe = yaml.safe_load(recipe_text)
    except yaml.YAMLError as error:
        raise RunError(f"{folder / RECIPE}: not YAML ({str(error).splitlines()[0]})") from error
    state = _json(state_folder / _STATE) if state_folder else {}
    environment = _json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    for path, value in ((RECIPE, recipe), (_STATE, state), ("environment.json", environment)):
        if not isinstance(value, dict):
            raise RunError(f"{folder / path}: holds a {type(value).__name__}, not named values")
    state_folder = state_folder or Path(str(recipe.get("model_name_or_path")))
    state = state if finished or not live else _logged(folder, recipe, state)
    run = Run(
        folder=folder,
        name=folder.resolve().name,
        finished=finished,
        state_folder=state_folder,
        recipe=recipe,
        recipe_text=recipe_text,
        environment=environment,
        history=_history(state, folder / METRICS if live and not finished else state_folder / _STATE),
        step=_steps(state, "global_step", state_folder),
        planned=_steps(state, "max_steps", state_folder),
    )
    constant = recipe.get("baseline_constant", 1.0)
    if not isinstance(constant, (int, float)):
        raise RunError(f"{folder / RECIPE}: baseline_constant is no number: {constant!r}")
    try:
        _ = run.estimator  # which refuses words that are none
    except (ValueError, TypeError) as error:
        raise RunError(f"{folder / RECIPE}: {error}") from error
    return run


def _logged(folder: Path, recipe: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """A state for the lines that a run has logged so far, the one being written left out."""
    path = folder / METRICS
    whole = _text(path).split("\n")[:-1] if path.is_file() else []
    try:
        history = [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: not JSON ({error})") from error
    steps = [line["step"] for line in history if isinstance(line, dict) and isinstance(line.get("step"), int)]
    planned = recipe.get("max_steps")
    planned = planned if isinstance(planned, int) and planned > 0 else saved.get("max_steps", 0)
    return {"log_history": history, "global_step": max(steps, default=0), "max_steps": planned}


def _history(state: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    history = state.get("log_history")
    if not isinstance(history, list) or not all(
        isinstance(line, dict) and isinstance(line.get("step"), int) for line in history
    ):
        raise RunError(f"{path}: log_history is not a list of log lines with their steps")
    if not history:
        raise RunError(f"{path}: log_history is empty; the run has logged nothing to report")
    return history


def _steps(state: dict[str, Any], name: str, folder: Path) -> int:
    found = state.get(name, 0)
    if not isinstance(found, int):
        raise RunError(f"{folder / _STATE}: {name} is no number of steps: {found!r}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: not JSON ({error})") from error


def read_runs(folders: Sequence[Path], live: bool = False) -> list[Run]:
    """Read runs, each once, under names that tell them apart; `live` as of `read_run`.

    Raises:
        RunError: see `read_run`.
    """
    for folder in folders:
        check_is_run(folder)  # first: a link that leads to itself leads nowhere
    runs = [read_run(folder, live) for folder in {folder.resolve(): folder for folder in folders}.values()]
    return [replace(run, name=name) for run, name in zip(runs, names_of([run.folder for run in runs]))]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of one recipe together, in the order in which they were named."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(_identity(run.recipe), sort_keys=True, default=str), []).append(run)
    kinds = [(found[0].method, tuple(found)) for found in members.values()]
    return [
        Group(_label(runs[0], [others[0] for name, others in kinds if name == method]), method, runs)
        for method, runs in kinds
    ]


def _label(run: Run, same_method: Sequence[Run]) -> str:
    """The method, and what tells this recipe from others of the same method: a field's value, else the run's name."""
    if len(same_method) == 1:
        return run.method
    for name in differing_fields([other.recipe for other in same_method]):
        values = [str(other.recipe.get(name)) for other in same_method]
        if len(set(values)) == len(values) and all(name in other.recipe for other in same_method):
            return f"{run.method} ({name} {run.recipe[name]})"
    return f"{run.method} ({run.name})"


def _identity(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name not in _SEED_FIELDS}


def differing_fields(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Fields that are not the same in all recipes, seeds and places left out, in the recipes' order."""
    names = dict.fromkeys(name for recipe in recipes for name in _identity(recipe))
    return [name for name in names if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes[1:])]
