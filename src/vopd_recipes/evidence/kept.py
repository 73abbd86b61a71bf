"""The logs of finished runs in one small file, from which tables and pictures are made again without the runs.

A run's folder holds weights, completions and every metric; a comparison reads a few columns of it. The file keeps
those, and with them the recipe, so that a run that is kept is held to the recipe that is asked for like any other, is
not trained again, and may have been trained on another machine.

    {"recipe": {…}, "runs": [{"method": "vopd", "seed": 0, "recipe": {…}, "logs": [{"step": [1, 2], …}, …]}]}

`recipe` are the fields that all runs share, and each run's own; `logs` its log lines as columns, lines of the same
metrics together. Numbers have five significant digits.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vopd_recipes.files import write_text
from vopd_recipes.recipe import RecipeError

# What is read of a log line; all that an evaluation measured besides.
_READ = ("step", "grad_norm", "reverse_kl", "time/rollout", "time/sync", "time/train")


@dataclass(frozen=True)
class Log:
    """What is kept of a finished run.

    Args:
        recipe: every field that tells it from another run.
        history: its log lines, in their order.
    """

    recipe: dict[str, Any]
    history: list[dict[str, Any]]


def read_logs(path: Path) -> dict[tuple[str, int], Log]:
    """Every run that a file keeps, by method and seed; none where there is no file.

    Raises:
        RecipeError: a file that holds something else.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            (str(run["method"]), int(run["seed"])): Log({**content["recipe"], **run["recipe"]}, _lines(run["logs"]))
            for run in content["runs"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{path}: not a file of kept runs ({type(error).__name__}: {error})") from None


def write_logs(path: Path, logs: Mapping[tuple[str, int], Log]) -> None:
    """Write a file of kept runs, whole or not at all."""
    shared = _shared([log.recipe for log in logs.values()])
    runs = []
    for (method, seed), log in sorted(logs.items()):
        own = {name: value for name, value in log.recipe.items() if name not in shared}
        columns = _columns(log.history)
        runs.append(json.dumps({"method": method, "seed": seed, "recipe": own, "logs": columns}, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps(shared, ensure_ascii=False)
    write_text(path, '{"recipe": ' + head + ', "runs": [\n' + ",\n".join(runs) + "\n]}\n")


def add_logs(path: Path, logs: Mapping[tuple[str, int], Log]) -> None:
    """Add runs to a file of kept runs; others that it holds stay, those of a command that ends beside this one too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # locked itself, so that no lock file is left beside the kept one
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        write_logs(path, read_logs(path) | dict(logs))
    finally:
        os.close(folder)


def _shared(recipes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = recipes[0] if recipes else {}
    return {name: value for name, value in first.items() if all(name in one and one[name] == value for one in recipes)}


def _columns(history: Iterable[Mapping[str, Any]]) -> list[dict[str, list[Any]]]:
    """Lines of the same metrics, as columns of them."""
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in history:
        kept = {name: value for name, value in line.items() if name in _READ or name.startswith("eval_")}
        if kept.keys() > {"step"}:
            tables.setdefault(tuple(kept), []).append(kept)
    return [{name: five_digits([line[name] for line in lines]) for name in names} for names, lines in tables.items()]


def five_digits(found: Any) -> Any:
    """The same, with every number of it at five significant digits."""
    if isinstance(found, dict):
        return {name: five_digits(value) for name, value in found.items()}
    if isinstance(found, list):
        return [five_digits(value) for value in found]
    return float(f"{found:.5g}") if isinstance(found, float) else found


def _lines(tables: Sequence[Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    lines = [dict(zip(table, values)) for table in tables for values in zip(*table.values(), strict=True)]
    return sorted(lines, key=lambda line: line["step"])
