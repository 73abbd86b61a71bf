"""Evaluate every published step and draw accuracy against steps: `python scripts/sweep_checkpoints.py org/name`.

Words after the model go to `make evaluate`: `python scripts/sweep_checkpoints.py org/name TASKS=math500 SAMPLES=8`.
"""

import argparse
import logging
import subprocess
from pathlib import Path

from vopd_recipes.hub import hub_client, plot_sweep, sweep_steps
from vopd_recipes.recipe import RecipeError, one_line_errors

ROOT = Path(__file__).resolve().parent.parent


def evals_of(words: list[str]) -> Path:
    """Where the evaluation will leave its results."""
    given = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name in ("MODEL", "REVISION"):
            raise RecipeError(f"{word}: words after the model are NAME=value, and neither MODEL nor REVISION")
        given[name] = value
    return ROOT / (given.get("OUTPUT") or "data/evals")


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo_id", help="org/name")
    parser.add_argument("words", nargs="*", help="NAME=value, for make evaluate")
    words = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    def evaluate(revision: str) -> None:
        print(f"{revision}: evaluating", flush=True)
        command = ["make", "evaluate", f"MODEL={words.repo_id}", f"REVISION={revision}", *words.words]
        if subprocess.run(command, cwd=ROOT).returncode:
            raise RecipeError(f"{revision}: the evaluation failed; the reason stands above, the same command resumes")

    evals = evals_of(words.words)
    results = sweep_steps(hub_client(60.0), words.repo_id, evals, evaluate)
    picture = plot_sweep(results, words.repo_id, evals / f"{words.repo_id.replace('/', '--')}-steps.png")
    for step, content in results.items():
        scores = (
            f"{task} {entry['avg']:.1%} ± {1.96 * entry['stderr']:.1%}" for task, entry in content["tasks"].items()
        )
        print(f"step {step}: {', '.join(scores)}")
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
