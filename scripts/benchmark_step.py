"""What `log_gradient_variance` adds to a whole step: `python scripts/benchmark_step.py RECIPE [--field value]`.

One process trains with a learning rate of 0, without and with the option in turn: off, on, on, off, and so on, so that
a slow minute of the machine hits both. A step is all of it, from one log line to the next: rollout, teacher, student,
optimiser, metrics, files. Every step samples anew, so its time is taken per completion token. Neighbours are a round,
and a round gives a ratio. On a CPU the process's own CPU
time tells more than the clock where other work runs beside it.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from vopd_recipes.models import load_student, load_teacher, load_tokenizer
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import RecipeError, load_recipe, one_line_errors
from vopd_recipes.training import VOPDTrainer

CLOCKS = {"clock": time.perf_counter, "CPU time": time.process_time}
TURNS = (False, True, True, False)  # with the option or without it


class Switch(TrainerCallback):
    """Switches the option between steps, and takes their time: (on, seconds per completion token) by either clock."""

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[bool, float]]] = {name: [] for name in CLOCKS}
        self._last = {name: clock() for name, clock in CLOCKS.items()}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.log_gradient_variance = TURNS[state.global_step % len(TURNS)]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "tokens_per_second" not in logs:
            return
        seconds = sum(logs[f"time/{part}"] for part in ("rollout", "sync", "train"))
        tokens = seconds * logs["tokens_per_second"]
        for name, clock in CLOCKS.items():
            before, self._last[name] = self._last[name], clock()
            self.steps[name].append((args.log_gradient_variance, (self._last[name] - before) / tokens))


def row(name: str, steps: list[tuple[bool, float]]) -> str:
    """Medians and the ratio within a round, with its quartiles; the first round has warmed up."""
    pairs = [dict(steps[place : place + 2]) for place in range(2, len(steps), 2)]
    low, middle, high = quantiles([pair[True] / pair[False] for pair in pairs], n=4)
    without, with_it = (1e3 * median(pair[on] for pair in pairs) for on in (False, True))
    return f"| {name} | {len(pairs)} | {without:.2f} | {with_it:.2f} | {middle:.3f} | {low:.3f} to {high:.3f} |"


@one_line_errors()
def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=10, help="pairs of steps, after one that warms up (%(default)s)")
    words, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        own = ["--output_dir", folder, "--max_steps", str(2 * words.rounds + 2), "--learning_rate", "0"]
        own += ["--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no", "--logging_steps", "1"]
        own += ["--disable_tqdm", "true"]
        if words.rounds < 2:
            raise RecipeError("--rounds must be at least 2")
        recipe = load_recipe(words.recipe, [*flags, *own])
        tokenizer, switch = load_tokenizer(recipe.model), Switch()
        prompts = build_prompts(read_rows(recipe.data, recipe.training.seed), recipe.data, tokenizer)
        models = load_student(recipe.model), load_teacher(recipe.model)
        trainer = VOPDTrainer(
            *models, recipe.training, processing_class=tokenizer, train_dataset=prompts.train, callbacks=[switch]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    print("| | rounds | without: ms/token | with: ms/token | ratio | quartiles |\n|---|--:|--:|--:|--:|--:|")
    print("\n".join(row(name, steps) for name, steps in switch.steps.items()))


if __name__ == "__main__":
    main()
