"""The table of subcommands, and what is said where a word is none of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from vopd_recipes.recipe import RecipeError, nearest, one_line_errors


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Args:
        module: whose `main(words)` it is; what that returns is the exit status.
        usage: the words after its name.
        summary: what it does.
    """

    module: str
    usage: str
    summary: str


_ROOM = "vopd_recipes.command"
COMMANDS = {
    "train": Command(f"{_ROOM}.train", "RECIPE [--processes N] [--field value ...]", "distil; once more resumes"),
    "explain": Command(f"{_ROOM}.explain", "RECIPE [--processes N]", "every value and its source, steps, memory"),
    "plan": Command(f"{_ROOM}.plan", "RECIPE --gpus 8 --gpu_memory 80", "whether it fits, and what to change"),
    "check": Command(f"{_ROOM}.check", "RECIPE [--random]", "whether this machine is right, in three minutes"),
    "evaluate": Command(f"{_ROOM}.evaluate", "MODEL [--tasks math]", "accuracy on benchmarks (in a checkout)"),
    "report": Command(f"{_ROOM}.report", "RUN_DIR [RUN_DIR ...] [--watch]", "one HTML page of runs"),
    "publish": Command(f"{_ROOM}.publish", "RUN_DIR --hub-model-id org/name", "to the Hub, a branch per checkpoint"),
    "download": Command(f"{_ROOM}.download", "org/name [--list]", "a published revision, checked"),
    "data": Command(f"{_ROOM}.data", "RECIPE_OF_DATA", "make a training set"),
}
_WIDTH = 50


def _help() -> str:
    rows = [f"  {f'{name} {each.usage}':{_WIDTH}} {each.summary}" for name, each in COMMANDS.items()]
    return "\n".join(
        [
            f"vOPD recipes {version('vopd-recipes')}: distil a reasoning model on its own samples.",
            "",
            "usage: vopd COMMAND ...",
            "",
            *rows,
            "",
            "RECIPE is a YAML file, or the name of one that comes with the package, such as qwen3-1.7b/vopd.",
            "`vopd COMMAND --help` has the flags. Exit status: 0 done, 1 stopped, 2 wrong input, 130 Ctrl-C.",
        ]
    )


@one_line_errors()
def main(words: list[str] | None = None) -> None:
    """Do what a command line says, and exit with its status.

    Args:
        words: those after `vopd`; default: the process's.
    """
    name, *rest = (sys.argv[1:] if words is None else words) or [""]
    if name in ("", "-h", "--help", "help"):
        print(_help())
        sys.exit(0 if name else 2)
    if name not in COMMANDS:
        raise RecipeError(f"vopd {name}: no such command{nearest(name, COMMANDS)}; vopd --help lists them")
    sys.exit(import_module(COMMANDS[name].module).main(rest))
