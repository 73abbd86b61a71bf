"""A prepared folder goes to the Hub, as a private data set."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from vopd_recipes.hub import reason
from vopd_recipes.recipe import RecipeError, is_hub_id

_AWAY = (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled)


def check_access(api: HfApi, repo_id: str) -> None:
    """Make sure, before hours of preparation, that the data set can be pushed; it is created if there is none.

    Raises:
        RecipeError: no token, no right to write there, a public data set, or no Hub.
    """
    if not is_hub_id(repo_id):
        raise RecipeError(f"--push: {repo_id!r} is not org/name")
    try:
        api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
        api.auth_check(repo_id, repo_type="dataset", write=True)
        is_private = api.dataset_info(repo_id).private
    except LocalTokenNotFoundError:
        raise RecipeError("--push: no Hub token; log in with `hf auth login` or set HF_TOKEN") from None
    except _AWAY as error:
        raise RecipeError(f"--push: {repo_id} cannot be written ({reason(error)}); leave --push out for now") from None
    if not is_private:
        raise RecipeError(f"--push: {repo_id} is public; make it private or name another")


def push(api: HfApi, folder: Path, repo_id: str) -> str:
    """Upload the folder as one commit; its address.

    Raises:
        RecipeError: the Hub did not take it.
    """
    try:
        done = api.upload_folder(
            repo_id=repo_id, folder_path=folder, repo_type="dataset", commit_message="Prepared training set"
        )
    except _AWAY as error:
        raise RecipeError(
            f"--push: {repo_id}: {reason(error)}; {folder} is whole, the same command uploads it again"
        ) from None
    return done.commit_url
