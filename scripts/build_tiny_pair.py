"""Train built-in models from scratch: `python scripts/build_tiny_pair.py data/tiny-arithmetic`.

Writes `teacher/`, `student/`, `prompts/{train,test}.jsonl` and `pair.json` with the accuracy of both: two minutes on
two CPU cores. With `--two-teachers` (into `data/tiny-two-teachers`): `teacher-sums/`, `teacher-differences/`, one
student that is weak at both, and `prompts/{sums,differences}/`. What is already there is kept.
"""

import argparse
import logging
from pathlib import Path

from vopd_recipes.files import check_writable
from vopd_recipes.recipe import RecipeError
from vopd_recipes.tiny import Blueprint, build_models

# Chosen by looking: a teacher is right on nearly every problem of its own, a student on about half.
PAIR = {
    "teacher": Blueprint(hidden_size=128, layers=3, steps=400, kinds=("chain",)),
    "student": Blueprint(hidden_size=96, layers=2, steps=260, kinds=("chain",)),
}
TWO_TEACHERS = {
    "teacher-sums": Blueprint(hidden_size=128, layers=3, steps=400, kinds=("chain",)),
    "teacher-differences": Blueprint(hidden_size=128, layers=3, steps=600, kinds=("falling",)),
    "student": Blueprint(hidden_size=96, layers=2, steps=300, kinds=("chain", "falling")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--two-teachers", action="store_true", help="one of sums and one of differences")
    words = parser.parse_args()
    if (words.folder / "pair.json").is_file():
        print(f"{words.folder}: already built")
        return
    prompts, blueprints = {"chain": "prompts"}, PAIR
    if words.two_teachers:
        prompts, blueprints = {"chain": "prompts/sums", "falling": "prompts/differences"}, TWO_TEACHERS
    try:
        check_writable(words.folder.parent, "folder")
        found = build_models(words.folder, blueprints, prompts)
    except (FileExistsError, RecipeError) as error:
        raise SystemExit(f"error: {error}") from None
    for name, facts in found.items():
        right = facts["accuracy"] if words.two_teachers else {"chain": facts["accuracy"]}
        shares = ", ".join(f"{share:.1%} of held-out {Path(prompts[kind]).name}" for kind, share in right.items())
        print(f"{name}: {facts['parameters']:,} parameters, right on {shares}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
