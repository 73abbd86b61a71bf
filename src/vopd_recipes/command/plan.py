"""Whether a recipe fits on the GPUs, what needs how much, and what to change if it does not.

    vopd plan qwen3-8b/vopd --gpus 8 --gpu_memory 80 [--field value …]

No weights are loaded and no GPU is needed. Exit status: 0 fits, 1 does not, 2 bad input.
"""

import argparse
import logging
import sys
from typing import NoReturn, get_args

from vopd_recipes.command.unlogged import unlogged
from vopd_recipes.planner import GB, Plan, Sharding, parameters_of, plan, read_setup, smallest_change, table, verdict
from vopd_recipes.recipe import RecipeError, find_recipe, one_line_errors


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def describe(result: Plan) -> str:
    setup = result.setup
    lines = []
    taught = [(f"teacher {one.teacher_name}".strip(), one) for one in setup.teachers]
    for name, model in (("student", setup.student), *((name, one.teacher) for name, one in taught)):
        if any(one.own_base for each, one in taught if each == name):
            lines.append(f"{name}: the student's own base, in one copy")
        elif model:
            parameters = parameters_of(model)
            trained = sum(parameter.numel for parameter in parameters if parameter.trained and name == "student")
            total = sum(parameter.numel for parameter in parameters)
            lines.append(f"{name}: {model.name}, {total:,} parameters" + (f", {trained:,} trained" if trained else ""))
        else:
            lines.append(f"{name}: on a server")
    lines.append(
        f"{setup.gpus} x {setup.gpu_bytes / GB:g} GB, sharding {setup.sharding}; a micro-batch is at most "
        f"{len(setup.sequences)} x {setup.sequences[0]} = {sum(setup.sequences)} tokens"
    )
    if result.cache_tokens is not None:
        engine = f"{setup.vllm_parallel} GPUs" if setup.vllm_parallel > 1 else "each GPU"
        lines.append(
            f"vLLM on {engine}: cache for {result.cache_tokens} tokens, "
            f"{result.cache_tokens / setup.vllm_length:.1f} sequences of {setup.vllm_length}"
        )
    return "\n".join(lines)


@one_line_errors()
def main(words: list[str] | None = None) -> None:
    """Of these words; default: the process's."""
    parser = OneLineParser(
        prog="vopd plan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file, or a shipped name; any field of it can follow as --field value")
    parser.add_argument("--gpus", type=int, default=8, help="one process each, over all nodes [8]")
    parser.add_argument("--gpu_memory", type=float, default=80.0, help="GB of each, 10^9 bytes [80]")
    parser.add_argument("--sharding", choices=get_args(Sharding), help="the launcher's [as the recipe's deepspeed]")
    options, overrides = parser.parse_known_args(words)
    if options.gpus < 1 or not 0 < options.gpu_memory < float("inf"):
        parser.error("--gpus and --gpu_memory must be positive")
    path, memory = find_recipe(options.recipe), int(options.gpu_memory * GB)
    with unlogged(logging.WARNING):
        setup = read_setup(path, overrides, options.gpus, memory, options.sharding)
        result = plan(setup)
        change = None if result.fits else smallest_change(setup)
    print(describe(result), "", table(result), "", verdict(result), sep="\n")
    if result.fits:
        return
    if change is None:
        print("nothing that this planner knows makes it fit: more GPUs, larger ones, or a smaller model")
    else:
        print("smallest change that fits:", *(f"  {line}" for line in change[0]), sep="\n")
        print(verdict(change[1]))
    sys.exit(1)
