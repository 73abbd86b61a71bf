"""What a method, or `log_gradient_variance`, costs in a whole step: `python scripts/benchmark_step.py RECIPE`.

One process trains with a learning rate of 0, and its steps take turns: without and with the option, or with each of
`--methods`, once in this order and once in the other, so that a slow minute of the machine hits all alike. A step is
all of it, from one log line to the next: rollout, teacher, student, optimiser, metrics, files. Every step samples
anew, so its time is taken per completion token. Turns in a row are a round, and a round gives a ratio to the first of
them. On a CPU the process's own CPU time tells more than the clock where other work runs beside it.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from vopd_recipes.evidence import compared
from vopd_recipes.models import load_student, load_teacher, load_tokenizer
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import Recipe, RecipeError, load_recipe, nearest, one_line_errors
from vopd_recipes.training import VOPDTrainer

CLOCKS = {"clock": time.perf_counter, "CPU time": time.process_time}


class Turns(TrainerCallback):
    """Switches before each step, and takes its time: name of the turn → seconds per completion token, by each clock.

    Args:
        turns: name → what makes a trainer take it.
    """

    def __init__(self, turns: dict[str, Callable[[VOPDTrainer], None]]) -> None:
        self._turns = turns
        self.trainer: VOPDTrainer | None = None
        self.rounds: list[dict[str, dict[str, float]]] = []
        self._last = {name: clock() for name, clock in CLOCKS.items()}

    def _name(self, step: int) -> str:
        names, (turn, place) = list(self._turns), divmod(step, len(self._turns))
        return names[::-1][place] if turn % 2 else names[place]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._turns[self._name(state.global_step)](self.trainer)  # type: ignore[arg-type]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "tokens_per_second" not in logs:
            return
        tokens = sum(logs[f"time/{part}"] for part in ("rollout", "sync", "train")) * logs["tokens_per_second"]
        if (state.global_step - 1) % len(self._turns) == 0:
            self.rounds.append({})
        found = self.rounds[-1].setdefault(self._name(state.global_step - 1), {})
        for name, clock in CLOCKS.items():
            before, self._last[name] = self._last[name], clock()
            found[name] = (self._last[name] - before) / tokens

    def table(self) -> str:
        """A row for each turn: medians, and the ratio to the first within a round; the first round has warmed up."""
        first, *_ = self._turns
        lines = [f"| | rounds |{''.join(f' {name}: ms/token | ratio | quartiles |' for name in CLOCKS)}"]
        lines.append("|---|--:|" + "--:|--:|--:|" * len(CLOCKS))
        for turn in self._turns:
            cells = [turn, str(len(self.rounds) - 1)]
            for clock in CLOCKS:
                times = [(one[turn][clock], one[first][clock]) for one in self.rounds[1:]]
                low, middle, high = quantiles([ours / theirs for ours, theirs in times], n=4)
                cells += [
                    f"{1e3 * median(ours for ours, _ in times):.3g}",
                    f"{middle:.3f}",
                    f"{low:.3f} to {high:.3f}",
                ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


def with_option(on: bool) -> Callable[[VOPDTrainer], None]:
    def take(trainer: VOPDTrainer) -> None:
        trainer.args.log_gradient_variance = on

    return take


def with_method(name: str, path: Path, flags: list[str]) -> Callable[[VOPDTrainer], None]:
    if name not in compared():
        raise RecipeError(f"--methods: no method '{name}'{nearest(name, compared())}")
    estimator = load_recipe(path, [*flags, *compared()[name].flags]).training.estimator

    def take(trainer: VOPDTrainer) -> None:
        trainer.estimator = estimator

    return take


def trainer_of(recipe: Recipe, turns: Turns) -> VOPDTrainer:
    tokenizer = load_tokenizer(recipe.model)
    prompts = build_prompts(read_rows(recipe.data, recipe.training.seed), recipe.data, tokenizer)
    models = load_student(recipe.model), load_teacher(recipe.model)
    trainer = VOPDTrainer(
        *models, recipe.training, processing_class=tokenizer, train_dataset=prompts.train, callbacks=[turns]
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@one_line_errors()
def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=10, help="of steps, after one that warms up (%(default)s)")
    parser.add_argument("--methods", help="of scripts/compare_estimators.py, separated by commas")
    words, flags = parser.parse_known_args()
    if words.rounds < 2:
        raise RecipeError("--rounds must be at least 2")
    names = words.methods.split(",") if words.methods else []
    with tempfile.TemporaryDirectory() as folder:
        count = (len(names) or 2) * (words.rounds + 1)
        flags += ["--output_dir", folder, "--max_steps", str(count), "--learning_rate", "0", "--logging_steps", "1"]
        flags += ["--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no"]
        flags += ["--disable_tqdm", "true", *(["--log_gradient_variance", "false"] if names else [])]
        steps = {name: with_method(name, words.recipe, flags) for name in names}
        steps = steps or {"without": with_option(False), "with": with_option(True)}
        turns = Turns(steps)
        turns.trainer = trainer_of(load_recipe(words.recipe, flags), turns)
        turns.trainer.train()
    print(turns.table())


if __name__ == "__main__":
    main()
