"""`PUSH=1`: results go to the Hub beside the model that they are of; see `vopd_recipes.hub.results`."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from vopd_recipes.hub.results import push_results, read_results
from vopd_recipes.hub.revisions import reason
from vopd_recipes.recipe_text import RecipeError

_HUB_ERRORS = (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled)


def check_pushable(model: str) -> None:
    """Before anything is evaluated.

    Raises:
        RecipeError: a folder, no token, or no Hub.
    """
    if Path(model).expanduser().is_dir():
        raise RecipeError(
            f"PUSH: {model} is a folder; publish it by scripts/publish.py, then evaluate MODEL=org/name, so that the "
            "results are of what others can load"
        )
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        raise RecipeError("PUSH: no Hub token; log in with `hf auth login` or set HF_TOKEN") from None
    except _HUB_ERRORS as error:
        raise RecipeError(f"PUSH: the Hub does not take this machine's token: {reason(error)}") from None


def push(path: Path) -> str:
    """Publish a results file and the details beside it; the revision under which they are kept.

    Raises:
        RecipeError: the Hub refuses or is away; the results stay where they are.
    """
    try:
        return push_results(HfApi(), read_results(path))
    except _HUB_ERRORS as error:
        again = f"`python scripts/publish.py {path}` goes on"
        raise RecipeError(f"PUSH: {reason(error)}; the results are in {path}, {again}") from None
