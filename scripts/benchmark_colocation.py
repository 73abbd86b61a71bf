"""What a vLLM engine in the same process does to a training step.

    python scripts/benchmark_colocation.py RECIPE [--rounds N] [--field value]

Two processes train the recipe from the same prompts, one samples with transformers, the other with vLLM, and they take
turns: a whole step of one while the other waits. A round is one step of each, in alternating order, and gives a ratio,
so that a slow minute of the machine hits both. A step is timed from the end of its rollout to the end of the
optimiser's step, and apart from that the hand-over of the weights, which only vLLM needs; both by the clock and in CPU
time, per completion token. Memory is each process's peak.
"""

import argparse
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from vopd_recipes.models import load_student, load_teacher, load_tokenizer
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import RecipeError, load_recipe, one_line_errors
from vopd_recipes.training import VOPDTrainer

CLOCKS: dict[str, Callable[[], float]] = {"clock": time.perf_counter, "CPU time": time.process_time}
BACKENDS = ("transformers", "vllm")


class Turns(TrainerCallback):
    """Waits for a turn before each rollout; says what step and hand-over took, in ms per token by each clock."""

    def __init__(self, turn: Connection) -> None:
        self._turn = turn
        self._step = [0.0 for _ in CLOCKS]
        self._sync = [0.0 for _ in CLOCKS]

    def watch(self, rollout: Any) -> None:
        """Time the hand-overs to an engine."""
        sync = rollout.sync

        def timed(weights: Any) -> None:
            start = [clock() for clock in CLOCKS.values()]
            sync(weights)
            self._sync = [clock() - then for clock, then in zip(CLOCKS.values(), start)]

        rollout.sync = timed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._turn.recv()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = [clock() for clock in CLOCKS.values()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = [clock() - then for clock, then in zip(CLOCKS.values(), self._start)]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "tokens_per_second" not in logs:
            return
        tokens = logs["tokens_per_second"] * sum(logs[f"time/{part}"] for part in ("rollout", "sync", "train"))
        self._turn.send([[1e3 * seconds / tokens for seconds in took] for took in (self._step, self._sync)])
        if state.global_step < state.max_steps:
            self._turn.recv()


def train(turn: Connection, path: Path, flags: list[str]) -> None:
    """One of the two processes."""
    logging.disable(logging.WARNING)
    recipe = load_recipe(path, flags)
    tokenizer = load_tokenizer(recipe.model)
    prompts = build_prompts(read_rows(recipe.data, recipe.training.seed), recipe.data, tokenizer)
    models, turns = (load_student(recipe.model), load_teacher(recipe.model)), Turns(turn)
    trainer = VOPDTrainer(
        *models,
        recipe.training,
        processing_class=tokenizer,
        model_config=recipe.model,
        train_dataset=prompts.train,
        callbacks=[turns],
    )
    trainer.remove_callback(PrinterCallback)
    turns.watch(trainer.rollout)
    turn.send(None)
    trainer.train()
    turn.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def take_turns(path: Path, flags: list[str], folder: str, rounds: int) -> tuple[dict[str, list[Any]], list[float]]:
    """What each process's steps took, and its peak memory in GB."""
    spawn, turns, workers = multiprocessing.get_context("spawn"), {}, []
    for backend in BACKENDS:
        turns[backend], theirs = spawn.Pipe()
        own = [*flags, "--rollout_backend", backend, "--output_dir", f"{folder}/{backend}"]
        workers.append(spawn.Process(target=train, args=(theirs, path, own)))
        workers[-1].start()
        theirs.close()
        turns[backend].recv()  # the models are loaded
    steps: dict[str, list[Any]] = {backend: [] for backend in BACKENDS}
    for turn in range(rounds + 1):
        for backend in BACKENDS[:: 1 if turn % 2 else -1]:
            turns[backend].send(None)
            steps[backend].append(turns[backend].recv())
    memory = [turns[backend].recv() for backend in BACKENDS]
    for worker in workers:
        worker.join()
    return steps, memory


def row(name: str, alone: list[float], beside: list[float], hand_over: list[float]) -> str:
    """Medians, and the ratio within a round with its quartiles."""
    low, middle, high = quantiles([b / a for a, b in zip(alone, beside)], n=4)
    cells = [f"{median(alone):.2f}", f"{median(beside):.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
    return f"| {name} | {len(alone)} | {' | '.join(cells)} | {median(hand_over):.2f} |"


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=10, help="after one that warms up (%(default)s)")
    words, flags = parser.parse_known_args()
    if words.rounds < 2:
        raise RecipeError("--rounds must be at least 2")
    flags += ["--max_steps", str(words.rounds + 1), "--learning_rate", "0", "--logging_steps", "1"]
    flags += ["--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no", "--disable_tqdm", "true"]
    with tempfile.TemporaryDirectory() as folder:
        load_recipe(words.recipe, [*flags, "--output_dir", folder])  # what is wrong with it is one line here
        steps, memory = take_turns(words.recipe, flags, folder, words.rounds)
    print("ms per completion token\n")
    print("| | rounds | alone | beside vLLM | ratio | quartiles | hand-over |\n|---|--:|--:|--:|--:|--:|--:|")
    for place, name in enumerate(CLOCKS):
        alone, beside = ([step[place] for step, _ in steps[backend][1:]] for backend in BACKENDS)
        print(row(name, alone, beside, [sync[place] for _, sync in steps["vllm"][1:]]))
    print(f"\npeak memory: alone {memory[0]:.2f} GB, beside vLLM {memory[1]:.2f} GB")


if __name__ == "__main__":
    main()
