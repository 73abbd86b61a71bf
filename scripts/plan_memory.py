"""Whether a recipe fits on the GPUs, what needs how much, and what to change if it does not.

    python scripts/plan_memory.py recipes/qwen3-8b/vopd.yaml --gpus 8 --gpu_memory 80 [--field value …]

No weights are loaded and no GPU is needed. Exit status: 0 fits, 1 does not, 2 bad input.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import NoReturn, get_args

from vopd_recipes.planner import GB, Plan, Sharding, parameters_of, plan, read_setup, smallest_change, table, verdict
from vopd_recipes.recipe import RecipeError, one_line_errors


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
def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False)
    parser.add_argument("recipe", type=Path, help="YAML file; any field of it can follow as --field value")
    parser.add_argument("--gpus", type=int, default=8, help="one process each, over all nodes [8]")
    parser.add_argument("--gpu_memory", type=float, default=80.0, help="GB of each, 10^9 bytes [80]")
    parser.add_argument("--sharding", choices=get_args(Sharding), help="the launcher's [as the recipe's deepspeed]")
    words, overrides = parser.parse_known_args()
    if words.gpus < 1 or not 0 < words.gpu_memory < float("inf"):
        parser.error("--gpus and --gpu_memory must be positive")
    setup = read_setup(words.recipe, overrides, words.gpus, int(words.gpu_memory * GB), words.sharding)
    result = plan(setup)
    print(describe(result), "", table(result), "", verdict(result), sep="\n")
    if result.fits:
        return
    if (change := smallest_change(setup)) is None:
        print("nothing that this planner knows makes it fit: more GPUs, larger ones, or a smaller model")
    else:
        print("smallest change that fits:", *(f"  {line}" for line in change[0]), sep="\n")
        print(verdict(change[1]))
    sys.exit(1)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # of configurations that are only read; the whole process's, so not in main
    main()
