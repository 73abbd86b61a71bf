"""Published revisions, back on this machine: listed, fetched, and checked file by file.

Every file is hashed after the download and compared with what the Hub stores (SHA-256 of large files, git's id of
small ones) and with the manifest that was written where the weights were trained. A revision without its manifest's
every file is not complete and is not handed out.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from vopd_recipes.files import check_writable, sha256_of, write_text
from vopd_recipes.hub.revisions import MANIFEST, hub_is_away, is_same, is_weights, reason, remote_files
from vopd_recipes.recipe import RecipeError

_INDEX = "model.safetensors.index.json"
# The Hub's own are OSErrors, as are those of the disk; a page of a proxy's is no JSON.
_ERRORS = (OSError, httpx.TransportError, HFValidationError, json.JSONDecodeError)


@dataclass(frozen=True)
class Revision:
    """One branch or tag of a repository.

    Args:
        name: branch or tag.
        commit: what it stands at.
        size: bytes of all its files.
        missing: files that it should have and does not.
    """

    name: str
    commit: str
    size: int
    missing: list[str]


def list_revisions(api: HfApi, repo_id: str) -> list[Revision]:
    """Every branch, then every tag, each by name.

    Raises:
        RecipeError: no name of a repository, no such repository, or the Hub is away.
    """
    try:
        refs = api.list_repo_refs(repo_id)
        return [
            _described(api, repo_id, ref.name, ref.target_commit)
            for group in (refs.branches, refs.tags)
            for ref in sorted(group, key=lambda ref: ref.name)
        ]
    except _ERRORS as error:
        raise _unreachable(repo_id, None, error) from None


def _described(api: HfApi, repo_id: str, name: str, commit: str) -> Revision:
    remote = remote_files(api, repo_id, commit)
    manifest = _manifest(Path(api.hf_hub_download(repo_id, MANIFEST, revision=commit))) if MANIFEST in remote else {}
    missing = [MANIFEST]
    if manifest is not None:
        missing = [
            path
            for path, sha256 in manifest.items()
            if path not in remote or ((lfs := remote[path].lfs) and lfs.sha256 != sha256)
        ]
    return Revision(name, commit, sum(item.size for item in remote.values()), missing or _without_weights(remote))


def _without_weights(files: Any) -> list[str]:
    return [] if any(name.endswith((".safetensors", ".bin", ".gguf")) for name in files) else ["*.safetensors"]


def download(api: HfApi, repo_id: str, revision: str = "main", to: Path | None = None) -> Path:
    """Fetch the commit that a revision stands at now, check every file, and return its folder.

    Args:
        api: the Hub.
        repo_id: `org/name`.
        revision: branch, tag or commit.
        to: folder to write; default: the cache that `from_pretrained(repo_id, revision=…)` reads.

    Raises:
        RecipeError: no name of a repository, no such revision, the Hub is away, the disk is full, `to` holds weights
            that are not the revision's, the revision is not complete, or a file is damaged even after it was fetched
            again.
    """
    if to is not None:
        check_writable(to, "--to")
    try:
        commit = str(api.repo_info(repo_id, revision=revision).sha)
        remote = remote_files(api, repo_id, commit)
        if to is not None:
            _check_no_other_weights(to, remote, f"{repo_id}, revision {revision}")
        for _ in range(2):
            folder = Path(api.snapshot_download(repo_id, revision=commit, local_dir=to))
            damaged = [name for name, item in remote.items() if not is_same(item, folder / name)]
            if not damaged:
                break
            for name in damaged:  # in the cache the name is a link to the content
                (folder / name).resolve().unlink(missing_ok=True)
                (folder / name).unlink(missing_ok=True)
        missing = [] if damaged else _missing(folder)
        if to is None and not damaged and not missing:
            _name_in_cache(folder, revision, commit)
    except _ERRORS as error:
        raise _unreachable(repo_id, revision, error) from None
    if damaged:
        raise RecipeError(
            f"{repo_id}, revision {revision}: {damaged[0]} arrives damaged; is the disk or network sound?"
        )
    if missing:
        raise RecipeError(
            f"{repo_id}, revision {revision}: not complete, {missing[0]} is missing or is not what was trained; an "
            "upload that has not finished resumes with `python scripts/publish.py RUN_DIR` where it was trained"
        )
    return folder


def _check_no_other_weights(to: Path, remote: Container[str], what: str) -> None:
    """An adapter, or weights in one file, would be loaded instead of those that come, or with them."""
    others = [path.name for path in sorted(to.iterdir()) if is_weights(path.name) and path.name not in remote]
    if others:
        raise RecipeError(
            f"--to: {to} holds {others[0]}, which {what} has not, and which would be loaded; name an empty folder"
        )


def _name_in_cache(snapshot: Path, revision: str, commit: str) -> None:
    """What the Hub's library notes of a branch or tag that it fetched by name: how it is found without a network."""
    if revision != commit:
        write_text(snapshot.parent.parent / "refs" / revision, commit)


def _missing(folder: Path) -> list[str]:
    """Files of the manifest, or shards of the index, that are not there as they should be."""
    manifest = _manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    if manifest is None:
        return [MANIFEST]
    wrong = [
        name
        for name, sha256 in manifest.items()
        if not (folder / name).is_file() or sha256_of(folder / name) != sha256
    ]
    wrong += [name for name in _shards(folder / _INDEX) if not (folder / name).is_file()]
    return wrong or _without_weights([path.name for path in folder.iterdir()])


def _manifest(path: Path) -> dict[str, str] | None:
    """File → SHA-256; `None` where what is there is damaged. One of somebody else's says nothing of files."""
    try:
        files = json.loads(path.read_text(encoding="utf-8")).get("files", {})
        return {str(name): str(entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _shards(index: Path) -> list[str]:
    """Files that an index names; a damaged one misses itself."""
    try:
        return sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{_INDEX} (damaged)"]


def _unreachable(repo_id: str, revision: str | None, error: Exception) -> RecipeError:
    if isinstance(error, HFValidationError):
        return RecipeError(f"{repo_id}: no name of a repository on the Hub; give it as org/name")
    if isinstance(error, RevisionNotFoundError):
        return RecipeError(f"{repo_id} has no revision {revision}; python scripts/download.py {repo_id} --list")
    if isinstance(error, RepositoryNotFoundError):
        return RecipeError(f"{repo_id}: no such model repository, or it is private and this token may not read it")
    if isinstance(error, OSError) and error.errno and not hub_is_away(error):
        return RecipeError(f"{repo_id}: cannot be written here ({error.strerror}); make room, or name another place")
    return RecipeError(f"{repo_id}: the Hub is away ({reason(error)}); try again later")
