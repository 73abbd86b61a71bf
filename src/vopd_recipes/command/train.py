"""Distil: `vopd train RECIPE [--processes N] [--accelerate_config NAME|FILE] [--field value …]`.

The recipe is read here first, so that what is wrong with it is one line and not one of every process under a
launcher's traceback. One process then trains here; several are started by accelerate, and their exit status, or the
signal that ended them, becomes this command's own. accelerate sets one CPU thread where nobody says how many; here the
processes share the cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, NoReturn

import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import patch_environment
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from vopd_recipes.command.unlogged import unlogged
from vopd_recipes.console import LOGS
from vopd_recipes.planner import read_anywhere
from vopd_recipes.recipe import RecipeError, find_recipe, find_shipped, one_line, one_line_errors
from vopd_recipes.training import COMMAND, description
from vopd_recipes.training import main as train

USAGE = "usage: vopd train RECIPE [--processes N] [--accelerate_config ddp|zero2|zero3|fsdp2|FILE] [--field value ...]"
_SAID = (1, 2, 128 + signal.SIGINT)  # statuses of processes that have said why


@one_line_errors()
def main(words: list[str]) -> None:
    """Train a recipe to its end, in this process or in several."""
    if not words or words[0] in ("-h", "--help"):
        print(description(USAGE))
        sys.exit(0 if words else 2)
    processes, rest = take_processes(words)
    configuration, rest = _take("accelerate_config", rest)
    if not rest or rest[0].startswith("-"):
        raise RecipeError("vopd train: name a recipe first, as in vopd train qwen3-1.7b/vopd")
    recipe, fields = find_recipe(rest[0]), rest[1:]
    if configuration is None and (processes or 1) == 1:
        train([str(recipe), *fields])
        return
    checked, _ = read_anywhere(recipe, fields)
    launched = ["-m", "vopd_recipes.training", str(recipe), *fields]
    with patch_environment(**{COMMAND: shlex.join(["vopd", "train", *words])}):
        _launch([*_launcher_words(processes, configuration), *launched], Path(str(checked.training.output_dir)))


def take_processes(words: list[str]) -> tuple[int | None, list[str]]:
    """How many were asked for, and the other words.

    Raises:
        RecipeError: no whole number above 0.
    """
    number, rest = _take("processes", words)
    if number is not None and not (number.isdecimal() and int(number) > 0):
        raise RecipeError(f"--processes: {number!r} is no number of processes; at least 1 trains")
    return (None if number is None else int(number)), rest


def _take(name: str, words: list[str]) -> tuple[str | None, list[str]]:
    """A flag of the command's own out of a recipe's."""
    parser = argparse.ArgumentParser(prog="vopd", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{name}")
    try:
        known, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise RecipeError(f"--{name}: {error.message}") from None
    return getattr(known, name), rest


def _launcher_words(processes: int | None, configuration: str | None) -> list[str]:
    """What `accelerate launch` is to be told."""
    words = ["--num_processes", str(processes)] if processes else []
    if configuration is None:
        words += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        words += ["--main_process_port", "0"]  # any that is free
    else:
        file = find_recipe(configuration, "accelerate_configs")
        try:
            settings: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
            named = (settings.get("deepspeed_config") or {}).get("deepspeed_config_file")
            processes = processes or int(settings.get("num_processes") or 1)
        except (yaml.YAMLError, AttributeError, ValueError, OSError) as error:
            raise RecipeError(f"--accelerate_config: {file}: {one_line(error)}") from None
        words += ["--config_file", str(file)]
        if named:
            words += ["--deepspeed_config_file", str(find_shipped(Path(named)))]
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // (processes or 1))
        words += ["--num_cpu_threads_per_process", str(threads)]
    return words


def _launch(words: list[str], output_dir: Path) -> NoReturn:
    """Start processes and end as they do."""
    try:
        with unlogged(logging.CRITICAL):  # what launchers say of a process that ended is said below, in one line
            launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _end(failure.exitcode, f"process {rank}", output_dir / LOGS / f"rank-{rank}.log")
    except CalledProcessError as error:
        _end(error.returncode, "the process", output_dir / LOGS)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))
    except (ValueError, OSError) as error:
        raise RecipeError(f"accelerate does not start that: {one_line(error)}") from error
    sys.exit(0)


def _end(status: int, who: str, log: Path) -> NoReturn:
    if status < 0:
        name = signal.Signals(-status).name
        how, status = f"was ended by {name}{' (often: out of memory)' * (name == 'SIGKILL')}", 128 - status
    else:
        how = f"ended with status {status}"
    if status not in _SAID:
        print(f"error: {who} {how}; {log} has its last words, the same command resumes", file=sys.stderr)
    sys.exit(status)
