"""Publish what a run has saved, or an evaluation's results: `vopd publish RUN_DIR | results.json`.

A run goes where its recipe says (`hub_model_id`, `hub_private_repo`, `hub_merge`) or where the flags say: every whole
checkpoint becomes a branch, the final model `main`. Doing it twice is harmless; interrupted, the same command resumes.
"""

import argparse
import logging
import sys
from pathlib import Path

import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from vopd_recipes.hub import (
    Pace,
    Target,
    check_access,
    check_publishable,
    hub_client,
    hub_is_away,
    publish_run,
    publishable_results,
    push_results,
    reason,
)
from vopd_recipes.recipe import RecipeError, one_line

logger = logging.getLogger("publish")


def target_of(words: argparse.Namespace) -> Target:
    path = words.path / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(f"{words.path} holds no run (no recipe.yaml)")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: not YAML ({one_line(error, 200)}); take it from another copy of the run") from None
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path}: holds no recipe, which names values; take it from another copy of the run")
    given = {
        "hub_model_id": words.hub_model_id,
        "hub_private_repo": False if words.public else None,
        "hub_merge": words.hub_merge or None,
    }
    recipe |= {name: value for name, value in given.items() if value is not None}
    if not recipe.get("hub_model_id"):
        raise RecipeError(f"{path} names no repository as hub_model_id; give --hub-model-id org/name")
    if recipe.get("hub_merge") and not recipe.get("use_peft"):
        raise RecipeError(f"--hub-merge: {words.path} holds no LoRA run; there is nothing to merge")
    target = Target.of(recipe)
    target.check_names()
    return target


def end(error: Exception) -> None:
    """One line and an exit status: 1 if the same command may do it later, 2 if not; a bug keeps its traceback."""
    if hub_is_away(error):
        print(f"error: the Hub is away ({reason(error)}); the same command resumes", file=sys.stderr)
        sys.exit(1)
    if not isinstance(error, (RecipeError, HFValidationError, OSError)):
        raise error
    refused = "the Hub refuses: " if isinstance(error, HfHubHTTPError) else ""
    print(f"error: {refused}{error if isinstance(error, RecipeError) else reason(error)}", file=sys.stderr)
    sys.exit(2)


def main(words: list[str] | None = None) -> None:
    """Of these words; default: the process's."""
    parser = argparse.ArgumentParser(prog="vopd publish", description=__doc__)
    parser.add_argument("path", type=Path, help="output folder of a run, or an evaluation's results.json")
    parser.add_argument("--hub-model-id", "--hub_model_id", help="org/name; default: the recipe's")
    parser.add_argument(
        "--hub-merge", "--hub_merge", action="store_true", help="LoRA: the merged model too, to org/name-merged"
    )
    parser.add_argument("--public", action="store_true", help="of a repository that has to be created")
    parser.add_argument("--tag", help="name of the release; default: the next of v1, v2, ...")
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pace = Pace()
    api = hub_client(pace.answer)
    try:
        if options.path.is_file():
            results = publishable_results(options.path)
            print(f"results of {results.repo_id}, {push_results(api, results)}: published")
            return
        target = target_of(options)
        check_publishable(options.path)
        for repo_id in target.repo_ids:
            for line in check_access(api, repo_id, target.private):
                logger.warning(line)
        publish_run(options.path, target, api, pace, options.tag)
    except Exception as error:
        end(error)
