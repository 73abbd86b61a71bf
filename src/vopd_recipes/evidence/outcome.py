"""Every method times every seed on one recipe: which runs that makes, and whether those that are there belong to it.

A folder of runs outlives the command that began it. So every run that is taken over, finished or interrupted, is held
to its own `recipe.yaml`, or to the recipe that is kept with its log: a difference in one field, and what would be
compared is something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from vopd_recipes.evidence.kept import Log
from vopd_recipes.files import RECIPE, RunError, history_of, last_complete_checkpoint
from vopd_recipes.loss import METHODS, Method
from vopd_recipes.recipe import DataConfig, ModelConfig, RecipeError, VOPDConfig, load_recipe


@dataclass(frozen=True)
class Compared:
    """A method that is compared, at one k where it has one.

    Args:
        name: of its runs' folders.
        title: as tables have it.
        flags: what makes it differ from the recipe.
    """

    name: str
    title: str
    flags: tuple[str, ...]


def compared() -> dict[str, Compared]:
    """Every run that the table of methods asks for, by name."""
    found = [_run_of(row, more) for row in METHODS.values() for more in row.compared]
    return {method.name: method for method in found}


def _run_of(row: Method, more: Mapping[str, Any]) -> Compared:
    fields = {**row.fields, **more}
    flags = tuple(word for name, value in fields.items() for word in (f"--{name}", str(value)))
    suffix = "".join(f"_{value}" for value in more.values()) if len(row.compared) > 1 else ""
    at = (
        [f"{'teacher’s ' * (more.get('support') == 'teacher')}{more['support_top_k']}"]
        if "support_top_k" in more
        else []
    )
    return Compared(row.name + suffix, row.title + "".join(f" ({k})" for k in at), flags)


# Fields that change nothing of what is compared: where a run is kept, what it prints, saves and sends.
_ELSEWHERE = (
    "output_dir",
    "disable_tqdm",
    "resume_from_checkpoint",
    "run_name",
    "report_to",
    "project",
    "logging_dir",
)
_ELSEWHERE_BEGINNINGS = ("save_", "hub_", "push_to_hub", "trackio")
_FIELDS = {item.name: item for part in (ModelConfig, DataConfig, VOPDConfig) for item in fields(part)}


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Args:
        method: which.
        seed: of prompts' order, rollouts and adapters.
        folder: its `output_dir`.
        kept: its log, where a file has it; the folder need not be there then.
    """

    method: Compared
    seed: int
    folder: Path
    kept: Log | None = field(default=None, compare=False)

    @property
    def flags(self) -> list[str]:
        """What makes it differ from the recipe and from the other runs."""
        own = ["--seed", str(self.seed), "--output_dir", str(self.folder), "--disable_tqdm", "true"]
        return [*self.method.flags, *own]

    @property
    def done(self) -> bool:
        """Whether it was trained to its end: its log is kept, or its trainer state is there, and is whole."""
        try:
            return bool(self.history)
        except (OSError, RunError):
            return False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The log lines of a finished run.

        Raises:
            OSError: it is not finished.
            RunError: its trainer state is not whole.
        """
        return history_of(self.folder) if self.kept is None else self.kept.history

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_suffix(".log")

    def to_keep(self) -> Log:
        """Its log and its recipe, of a finished run: the fields that tell it from another."""
        if self.kept is not None:
            return self.kept
        recipe = {name: value for name, value in _recipe_of(self).items() if not _elsewhere(name)}
        return Log(recipe, self.history)


def plan(
    output: Path,
    methods: Sequence[Compared],
    seeds: Sequence[int],
    kept: Mapping[tuple[str, int], Log] | None = None,
) -> list[Run]:
    """Every run once, seed by seed: interrupted anywhere, the methods that are there can be compared.

    Args:
        output: folder of the runs' folders.
        methods: of the runs.
        seeds: of each method.
        kept: logs of runs that need not be trained again.
    """
    once, logs = dict.fromkeys(methods), kept or {}
    return [
        Run(method, seed, output / f"{method.name}-seed{seed}", logs.get((method.name, seed)))
        for seed in seeds
        for method in once
    ]


def check_runs(runs: Sequence[Run], recipe: Path, flags: Sequence[str]) -> None:
    """Hold every run that is done, or that would resume from a checkpoint, to the recipe that is to be compared.

    Args:
        runs: all of them.
        recipe: of all.
        flags: for all, `--field value`.

    Raises:
        RecipeError: a recipe that is wrong, or a run of another one: the field, both values, and the way out.
    """
    for run in runs:
        asked = yaml.safe_load(yaml.safe_dump(load_recipe(recipe, [*flags, *run.flags]).resolved()))
        if not run.done and last_complete_checkpoint(run.folder) is None:
            continue  # it begins anew, and writes its recipe again
        if (name := _first_difference(before := _recipe_of(run), asked)) is not None:
            was, wanted = _value(before, name), _value(asked, name)
            where = f"{run.folder}: holds a run" if run.kept is None else f"--kept: holds {run.folder.name}"
            way_out = "--output" if run.kept is None else "file"
            raise RecipeError(f"{where} with {name}: {was}, not {wanted}; name another {way_out}, or remove it")


def _recipe_of(run: Run) -> dict[str, Any]:
    if run.kept is not None:
        return run.kept.recipe
    path = run.folder / RECIPE
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read, so nobody knows what was trained there ({error})") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: holds no fields, so nobody knows what was trained there; remove {run.folder}")
    return found


def _first_difference(before: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """The first field that tells the recipes apart."""
    for name in dict.fromkeys([*asked, *before]):
        if not _elsewhere(name) and _value(before, name) != _value(asked, name):
            return name
    return None


def _elsewhere(name: str) -> bool:
    return name in _ELSEWHERE or name.startswith(_ELSEWHERE_BEGINNINGS)


def _value(recipe: dict[str, Any], name: str) -> Any:
    """A field as it was trained with: the default where a recipe, of an earlier version perhaps, does not have it."""
    if name in recipe or name not in _FIELDS:
        return recipe.get(name)
    factory, default = _FIELDS[name].default_factory, _FIELDS[name].default
    value = factory() if callable(factory) else default
    return value.value if isinstance(value, Enum) else value
