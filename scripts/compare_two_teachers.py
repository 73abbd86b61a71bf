"""Two teachers against one: `python scripts/compare_two_teachers.py [--seeds 3] [--jobs 2]`.

Trains `recipes/tiny-two-teachers/` with both teachers and with each alone, seed by seed, and grades every result on
both tasks' held-out problems, one sample each at temperature 1. The same command, started again, resumes. The pair is
built by `python scripts/build_tiny_pair.py data/tiny-two-teachers --two-teachers`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import AutoModelForCausalLM

from vopd_recipes.files import write_text
from vopd_recipes.recipe import RecipeError, one_line_errors
from vopd_recipes.tiny import Problem, accuracy

PAIR = Path("data/tiny-two-teachers")
TASKS = ("sums", "differences")
RECIPES = {"both teachers": "vopd", "sums alone": "vopd_sums_alone", "differences alone": "vopd_differences_alone"}


def train(recipe: str, seed: int) -> Path:
    """One run to its end, in a process of its own."""
    folder = Path("data/evidence/two-teachers") / f"{recipe}-{seed}"
    words = [f"recipes/tiny-two-teachers/{recipe}.yaml", "--seed", str(seed), "--output_dir", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        command = [sys.executable, "-m", "vopd_recipes.training", *words]
        if subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
            raise RecipeError(f"{folder}: the run failed; its log: {log.name}")
    return folder


def problems(task: str) -> list[Problem]:
    lines = (PAIR / "prompts" / task / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return [Problem(**json.loads(line)) for line in lines]


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
    words = parser.parse_args()
    if words.seeds < 1 or words.jobs < 1:
        raise RecipeError("--seeds and --jobs must be at least 1")
    if not (PAIR / "pair.json").is_file():
        raise RecipeError(f"{PAIR}: not built; python scripts/build_tiny_pair.py {PAIR} --two-teachers")
    runs = [(label, recipe, seed) for seed in range(words.seeds) for label, recipe in RECIPES.items()]
    with ThreadPoolExecutor(words.jobs) as pool:
        folders = list(pool.map(lambda run: train(*run[1:]), runs))
    test = {task: problems(task) for task in TASKS}
    found: dict[str, dict[str, list[float]]] = {
        "before": {task: [right] for task, right in zip(TASKS, _of(PAIR / "student", test))}
    }
    for (label, _, _), folder in zip(runs, folders):
        for task, right in zip(TASKS, _of(folder, test)):
            found.setdefault(label, {}).setdefault(task, []).append(right)
    write_text(Path("data/evidence/two-teachers/accuracy.json"), json.dumps(found, indent=2) + "\n")
    print("| student | " + " | ".join(TASKS) + " |\n|---|" + "--:|" * len(TASKS))
    for label, right in found.items():
        print(f"| {label} | " + " | ".join(_text(right[task]) for task in TASKS) + " |")


def _of(folder: Path, test: dict[str, list[Problem]]) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return [accuracy(model, test[task]) for task in TASKS]


def _text(shares: list[float]) -> str:
    each = f" ({', '.join(f'{share:.1%}' for share in shares)})" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.1%}{each}"


if __name__ == "__main__":
    main()
