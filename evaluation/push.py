"""`PUSH=1`: results go to the Hub beside the model that they are of; see `vopd_recipes.hub.evaluations`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from vopd_recipes.hub import check_token, hub_client, hub_is_away, publishable_results, push_results, reason
from vopd_recipes.recipe import RecipeError, is_hub_id

_ANSWER = 60.0  # seconds that the Hub may take


def check_pushable(model: str | None, revision: str | None, limit: int | None) -> None:
    """Before anything is evaluated: are these results of something on the Hub, and may this token write there?

    Args:
        model: Hub id; `None` where results are only compared.
        revision: of it.
        limit: questions per task; `None`: all.

    Raises:
        RecipeError: they are not, it may not, or the Hub is away.
    """
    if not model:
        raise RecipeError("PUSH: it publishes the results of a MODEL; COMPARE alone has none: leave PUSH out")
    if Path(model).is_dir():
        raise RecipeError(
            f"PUSH: {model} is a folder; publish it by scripts/publish.py, then evaluate MODEL=org/name, so that the "
            "results are of what others can load"
        )
    if not is_hub_id(model):
        raise RecipeError(f"PUSH: {model} is no model repository; name it as MODEL=org/name")
    if revision is not None and re.fullmatch(r"[\w.-]+", revision) is None:
        raise RecipeError(f"PUSH: revision {revision} cannot name a split; evaluate a branch or tag")
    if limit is not None:
        raise RecipeError("PUSH: results of some questions are not published; leave out LIMIT or PUSH")
    try:
        api = hub_client(_ANSWER)
        check_token(api, "PUSH")
        _check_repositories(api, model)
    except Exception as error:
        if hub_is_away(error):
            raise RecipeError(
                f"PUSH: the Hub is away ({reason(error)}); try later, or leave PUSH out and publish the results later"
            ) from None
        if not isinstance(error, HfHubHTTPError):
            raise
        raise RecipeError(f"PUSH: this machine's token may not write to {model}: {reason(error)}") from None


def _check_repositories(api: HfApi, model: str) -> None:
    for repo_id, repo_type in ((model, "model"), (f"{model}-evals", "dataset")):
        try:
            api.auth_check(repo_id, repo_type=repo_type, write=True)
        except RepositoryNotFoundError:
            if repo_type == "model":
                raise RecipeError(f"PUSH: {model}: no such model repository, or this token may not read it") from None


def push(path: Path) -> bool:
    """Publish a results file and the details beside it, and say what came of it: the comparison is still to come.

    Where it fails, the results stay where they are.
    """
    try:
        results = publishable_results(path)
        print(f"published: {results.repo_id}-evals, {push_results(HfApi(), results)}")
        return True
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:  # the Hub's client raises many kinds
        again = f"the results are in {path}, `python scripts/publish.py {path}` resumes the push"
        print(f"error: PUSH: {reason(error)}; {again}", file=sys.stderr)
    return False
