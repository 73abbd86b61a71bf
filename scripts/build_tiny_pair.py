"""Train the built-in pair from scratch: `python scripts/build_tiny_pair.py data/tiny-arithmetic`.

Writes `teacher/`, `student/`, `prompts/{train,test}.jsonl` and `pair.json` with the accuracy of both.
About two minutes on two CPU cores; what is already there is kept.
"""

import argparse
import json
import logging
from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM

from vopd_recipes.files import write_text
from vopd_recipes.grading import MathGrader
from vopd_recipes.rollout import Sampling, TransformersRollout
from vopd_recipes.tiny import Problem, byte_tokenizer, save, split, tiny_qwen3, train_supervised, write

# Chosen by looking: the teacher is right on nearly every problem, the student on about half. A student that is right
# on a tenth learns slowly from its own samples; one that is right on 90 % has little left to learn.
MODELS = {
    "teacher": {"hidden_size": 128, "layers": 3, "steps": 400, "learning_rate": 4e-3},
    "student": {"hidden_size": 96, "layers": 2, "steps": 260, "learning_rate": 4e-3},
}
TRAIN_PROBLEMS, TEST_PROBLEMS, BATCH_SIZE = 20_000, 256, 64


def accuracy(model: Qwen3ForCausalLM, problems: list[Problem]) -> float:
    """Share of problems that one sample at temperature 1 gets right."""
    tokenizer = byte_tokenizer()
    rollout = TransformersRollout(lambda: model, {tokenizer.eos_token_id}, 257, Sampling(), batch_size=256)
    prompts = [tokenizer(problem.prompt)["input_ids"] for problem in problems]
    completions = rollout.generate(prompts, seeds=list(range(len(prompts))), max_new_tokens=64)
    texts = [tokenizer.decode(completion.token_ids, skip_special_tokens=True) for completion in completions]
    with MathGrader() as grader:
        grades = grader.grade(texts, [problem.answer for problem in problems])
    return sum(grade.correct for grade in grades) / len(grades)


def build(name: str, folder: Path, train: list[Problem], test: list[Problem]) -> dict[str, float]:
    """Train and save one model."""
    settings = MODELS[name]
    torch.manual_seed(0)
    model = tiny_qwen3(settings["hidden_size"], settings["layers"], seed=0)
    train_supervised(
        model, byte_tokenizer(), train, steps=settings["steps"], batch_size=BATCH_SIZE,
        learning_rate=settings["learning_rate"], seed=0, label=f"Training the {name}",
    )  # fmt: skip
    right = accuracy(model, test)
    save(model, byte_tokenizer(), folder / name)
    return {"parameters": model.num_parameters(), "accuracy": right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    summary = folder / "pair.json"
    if summary.is_file():
        print(f"{folder}: already built")
        return
    if any((folder / name).exists() for name in MODELS):
        raise SystemExit(f"error: {folder} holds part of a pair; remove it and run this again")
    train, test = split("chain", TRAIN_PROBLEMS, TEST_PROBLEMS)
    write(folder / "prompts", train, test)
    found = {name: build(name, folder, train, test) for name in MODELS}
    write_text(summary, json.dumps(found, indent=2) + "\n")
    for name, facts in found.items():
        print(f"{name}: {facts['parameters']:,} parameters, {facts['accuracy']:.1%} of held-out problems right")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
