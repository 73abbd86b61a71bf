"""How fast completions come: `python scripts/benchmark_rollout.py RECIPE [--rounds N] [--field value …]`.

The same prompts in three ways: transformers' `generate`, `rollout_backend: transformers` and `rollout_backend: vllm`,
in turns, after one round that is not counted. Medians, and ratios within a round. Completions differ from one way to
the next, so what counts is tokens a second.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from vopd_recipes.models import end_of_sequence_ids, full_weights, load_student, load_tokenizer, vocabulary_of
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import Recipe, RecipeError, load_recipe, one_line_errors
from vopd_recipes.rollout import RolloutEngine, build_rollout


class Generate:
    """transformers' own loop over the training model, with the recipe's sampling."""

    stale = False

    def __init__(self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.student, self.batch_size = student, batch_size
        self.end_tokens = sorted(end_of_sequence_ids(student, tokenizer))

    @torch.no_grad()
    def tokens(self, prompts: list[list[int]], limit: int) -> int:
        count = 0
        for first in range(0, len(prompts), self.batch_size):
            rows = prompts[first : first + self.batch_size]
            width = max(map(len, rows))
            device = self.student.device
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
            output = self.student.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, eos_token_id=self.end_tokens, pad_token_id=self.end_tokens[0], use_cache=True,
            )[:, width:]  # fmt: skip
            for row in output.tolist():
                ended = next((i + 1 for i, token in enumerate(row) if token in self.end_tokens), len(row))
                count += ended
        return count


def tokens_of(
    engine: RolloutEngine | Generate, student: PreTrainedModel, prompts: list[list[int]], seed: int, limit: int
) -> int:
    if isinstance(engine, Generate):
        return engine.tokens(prompts, limit)
    if engine.stale:  # on a GPU an engine that has slept
        engine.sync(full_weights(student))
    seeds = [1000 * seed + i for i in range(len(prompts))]
    return sum(len(completion.token_ids) for completion in engine.generate(prompts, seeds, limit))


def engines_of(
    recipe: Recipe, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int
) -> dict[str, RolloutEngine | Generate]:
    accelerator, training = Accelerator(), recipe.training

    def engine(backend: str) -> RolloutEngine:
        training.rollout_backend = backend
        vocabulary = vocabulary_of(student)
        return build_rollout(training, student, accelerator, tokenizer, vocabulary, lambda: longest, recipe.model)

    return {
        "transformers, generate": Generate(student, tokenizer, training.rollout_batch_size),
        "rollout_backend: transformers": engine("transformers"),
        "rollout_backend: vllm": engine("vllm"),
    }


@one_line_errors()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="that count (%(default)s)")
    parser.add_argument("--prompts", type=int, default=16, help="completions a round (%(default)s)")
    words, flags = parser.parse_known_args()
    if words.rounds < 1 or words.prompts < 1:
        raise RecipeError("--rounds and --prompts must be at least 1")
    recipe = load_recipe(words.recipe, [*flags, "--disable_tqdm", "true"])
    tokenizer = load_tokenizer(recipe.model)
    rows = build_prompts(read_rows(recipe.data, recipe.training.seed), recipe.data, tokenizer).train
    prompts = [rows[i]["input_ids"] for i in range(min(words.prompts, len(rows)))]
    set_seed(recipe.training.seed)
    student, limit = (
        load_student(recipe.model).to(recipe.training.device).eval(),
        recipe.training.max_completion_length,
    )
    engines = engines_of(recipe, student, tokenizer, max(map(len, prompts)))
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(words.rounds + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            count = tokens_of(engine, student, prompts, turn, limit)
            if turn:
                speeds[name].append(count / (time.perf_counter() - start))
    print("| | tokens a second | × transformers | × generate |\n|---|--:|--:|--:|")
    for name, own in speeds.items():
        ratios = [
            statistics.median(ours / theirs for ours, theirs in zip(own, speeds[other]))
            for other in ("rollout_backend: transformers", "transformers, generate")
        ]
        print(f"| {name} | {statistics.median(own):.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
