"""Bytes and seconds a completion token costs by where the teacher is, and the share of a step that waits for it.

    python scripts/benchmark_teacher.py RECIPE --states http://node7:8000 --logprobs http://node8:8000 [--k 20 100]

The recipe's student samples one window of its prompts and trains on it, without a step of the optimiser, from its
local teacher, from a server of hidden states and from one of k log-probabilities a token: round by round in turn, so
that a slow minute of the machine hits all alike. Servers that are not named are left out.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vopd_recipes.models import load_student, load_teacher, load_teacher_head, load_tokenizer
from vopd_recipes.packing import MicroBatch, Sample, pack
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import RecipeError, load_recipe, one_line_errors
from vopd_recipes.teacher import ServerTeacher, StatesServer, StatesTeacher, Teacher, TeacherServer
from vopd_recipes.training import VOPDTrainer


class Way:
    """A teacher that is timed: what it costs in a round, [bytes, seconds, seconds waited]."""

    def __init__(self, name: str, teacher: Teacher, estimator: dict[str, Any], received: Callable[[], int]) -> None:
        self.name, self.teacher, self.estimator, self.received = name, teacher, estimator, received
        self.rounds: list[tuple[int, float, float]] = []

    def train(self, trainer: VOPDTrainer, batches: list[MicroBatch], tokens: int) -> None:
        """Forward and backward of a window."""
        for field, value in self.estimator.items():
            setattr(trainer.args, field, value)
        trainer.estimator, trainer.teacher = trainer.args.estimator, self.teacher
        before, start = self.received(), time.perf_counter()
        views = self.teacher.views(batches)
        waited = time.perf_counter() - start
        for batch, ask in zip(batches, views):
            asked = time.perf_counter()
            view = ask()
            waited += time.perf_counter() - asked
            weights = torch.full_like(batch.rollout_logprobs, 1 / tokens)
            trainer.student_loss(trainer.model, batch, view, weights, gradient_variance=False)[0].backward()
        self.rounds.append((self.received() - before, time.perf_counter() - start, waited))
        trainer.model.zero_grad()

    def row(self, tokens: int, local: float) -> str:
        """A line of the table; the first round has warmed up."""
        received, seconds, waited = (median(values) for values in zip(*self.rounds[1:]))
        share = median(round_[2] / round_[1] for round_ in self.rounds[1:])
        cells = [
            f"{received / tokens:,.0f}",
            f"{1e3 * seconds / tokens:.2f}",
            f"{seconds / local:.2f}",
            f"{share:.0%}",
        ]
        return f"| {self.name} | {' | '.join(cells)} |"


def ways(words: argparse.Namespace, trainer: VOPDTrainer, tokenizer: Any, models: Any, longest: int) -> list[Way]:
    """The local teacher, and what was named."""
    found = [Way("local, `full`", trainer.teacher, {"divergence": "full", "baseline": None}, lambda: 0)]
    if words.states:
        head = load_teacher_head(models)
        states = StatesServer(words.states, None, head.weight.dtype)
        states.check(tokenizer, longest, head)
        name = f"hidden states in {str(head.weight.dtype).removeprefix('torch.')}, `full`"
        full = {"divergence": "full", "baseline": None}
        found.append(Way(name, StatesTeacher(states, head), full, lambda: states.received))
    for k in words.k if words.logprobs else ():
        fields = {"divergence": "rao_blackwell", "baseline": "tail", "support": "teacher", "support_top_k": k}
        server = TeacherServer(words.logprobs, None, k)
        server.check(tokenizer, longest)
        for field, value in fields.items():
            setattr(trainer.args, field, value)
        teacher = ServerTeacher(server, len(tokenizer), trainer.args.estimator)
        found.append(Way(f"{k} log-probabilities, `rao_blackwell`", teacher, fields, lambda s=server: s.received))
    return found


@one_line_errors()
def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--states", help="URL of a pooling server that holds the recipe's teacher")
    parser.add_argument("--logprobs", help="URL of a server that completes text with it")
    parser.add_argument("--k", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--sequences", type=int, default=16, help="completions of the window (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up (%(default)s)")
    words, flags = parser.parse_known_args()
    if words.rounds < 1 or words.sequences < 1:
        raise RecipeError("--rounds and --sequences must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        own = ["--output_dir", folder, "--disable_tqdm", "true", "--eval_strategy", "no", "--eval_on_start", "false"]
        recipe = load_recipe(words.recipe, [*flags, *own])
        tokenizer = load_tokenizer(recipe.model)
        prompts = build_prompts(read_rows(recipe.data, recipe.training.seed), recipe.data, tokenizer)
        models = load_student(recipe.model), load_teacher(recipe.model)
        trainer = VOPDTrainer(*models, recipe.training, processing_class=tokenizer, train_dataset=prompts.train)
        rows = [prompts.train[index % len(prompts.train)] for index in range(words.sequences)]
        samples: list[Sample] = trainer.sample(rows, step=0, generations=1)
        batches = pack(samples, max(1, words.sequences // 4))
        tokens = sum(len(batch.targets) for batch in batches)
        longest = max(len(sample.prompt_ids) for sample in samples) + recipe.training.max_completion_length
        contenders = ways(words, trainer, tokenizer, recipe.model, longest)
        for turn in range(words.rounds + 1):
            for way in contenders if turn % 2 else contenders[::-1]:
                way.train(trainer, batches, tokens)
    local = median(seconds for _, seconds, _ in contenders[0].rounds[1:])
    print(f"{tokens:,} completion tokens of {len(samples)} completions, {len(batches)} micro-batches\n")
    print("| teacher | bytes/token | ms/token | × local | waits |\n|---|--:|--:|--:|--:|")
    print("\n".join(way.row(tokens, local) for way in contenders))


if __name__ == "__main__":
    main()
