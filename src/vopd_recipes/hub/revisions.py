"""One revision becomes one commit on a branch of its own, or is found to be there already.

A branch starts from the repository's first commit, which holds nothing: until its one commit is made nobody can load
it, and nothing of another revision can be taken for it. The commit adds what is ours and deletes what an earlier one
of ours has put there and any other weights, so that what loads is the manifest's; what a person has added, a licence,
stays. Doing it again compares hashes and changes nothing.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    constants,
    is_offline_mode,
    set_client_factory,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from vopd_recipes.files import sha256_of, write_text
from vopd_recipes.hub.queue import MAIN, OF_THE_RUN
from vopd_recipes.recipe import RecipeError, is_hub_id

MANIFEST = "manifest.json"
CARD = "README.md"
EVAL_RESULTS = ".eval_results/"
# What from_pretrained would take for this revision's weights.
_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "adapter_config.json")

_LICENCE = ("license", "license_name", "license_link")  # the last two where the first is `other`


def limit_waiting(seconds: float) -> None:
    """Bound every answer of the Hub: huggingface_hub's own client waits for ever. For this whole process.

    Large files go over HTTP too: Xet's client waits for minutes or, for a server that is silent, for ever.
    """
    constants.HF_HUB_DISABLE_XET = True
    timeout = httpx.Timeout(seconds, connect=min(seconds, 15.0))
    hooks = {"request": [_refuse_offline]}
    set_client_factory(lambda: httpx.Client(follow_redirects=True, timeout=timeout, event_hooks=hooks))


def hub_client(seconds: float) -> HfApi:
    """The Hub, for this whole process: it is not waited for longer, and no address of it is logged.

    Those of uploads are signed.

    Args:
        seconds: that an answer may take.
    """
    for name in ("httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    limit_waiting(seconds)
    return HfApi()


def _refuse_offline(request: httpx.Request) -> None:
    if is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")


def cause_of(error: Exception) -> Exception:
    """What went wrong: huggingface_hub wraps whatever a large file's upload fails by."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def hub_is_away(error: Exception) -> bool:
    """Whether it may work later as it is: no connection, no answer in time, 5xx, a rate limit, an answer of a proxy.

    `OfflineModeIsEnabled` is a `ConnectionError`. The client reads some answers before it looks at their status: a
    page of HTML is then a `JSONDecodeError`.
    """
    error = cause_of(error)
    if isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
        return error.response.status_code in (408, 425, 429) or error.response.status_code >= 500
    away = (httpx.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError, LocalEntryNotFoundError)
    return isinstance(error, away)


def reason(error: Exception) -> str:
    """One line without addresses: the Hub's upload addresses are signed."""
    error = cause_of(error)
    if isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
        return f"HTTP {error.response.status_code} {error.server_message or ''}".strip()[:200]
    if isinstance(error, json.JSONDecodeError):
        return "an answer that is no JSON"
    first = (str(error).splitlines() or [""])[0]
    named = first if isinstance(error, RecipeError) else f"{type(error).__name__}: {first}".rstrip(": ")
    return without_addresses(named)[:200]


def without_addresses(text: str) -> str:
    """The same without anything that begins like a URL."""
    return re.sub(r"https?://\S+", "…", text)


def check_access(api: HfApi, repo_id: str, private: bool) -> list[str]:
    """Make sure, before training, that this token may write there; the repository is created if there is none.

    Returns:
        Warnings: that nobody can tell at the moment, for a Hub that is away is no reason not to train; that what is
        to be private is going to be read by everyone.

    Raises:
        RecipeError: no token, a token that may not write, or a repository of another type.
    """
    try:
        check_token(api, "push_to_hub")
        _check_repository(api, repo_id, private)
        if private and api.model_info(repo_id).private is False:
            return [
                f"{repo_id} is there and is public: everyone can read what is published, whatever hub_private_repo "
                "says; make it private on the Hub, or name another"
            ]
    except Exception as error:
        if hub_is_away(error):
            return [f"the Hub is away ({reason(error)}): every save waits in the queue until it is back"]
        if not isinstance(error, HfHubHTTPError):
            raise
        if error.response.status_code == 401:
            raise RecipeError(
                "push_to_hub: the Hub does not know this token; log in again with `hf auth login` or set HF_TOKEN"
            ) from None
        raise RecipeError(
            f"hub_model_id: the token may not write to {repo_id} ({reason(error)}); log in with a token that has "
            "write access to it, name a repository of yours, or set push_to_hub: false"
        ) from None
    return []


def check_token(api: HfApi, flag: str) -> None:
    """Whether this machine has a token that may write at all.

    Args:
        api: the Hub.
        flag: what asked for it, the first word of an error.

    Raises:
        RecipeError: it has none, or one that may only read.
        HfHubHTTPError: the Hub does not know it, or is away.
    """
    try:
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
    except LocalTokenNotFoundError:
        raise RecipeError(f"{flag}: no Hub token; log in with `hf auth login` or set HF_TOKEN") from None
    if role == "read":
        raise RecipeError(
            f"{flag}: the Hub token may only read; make one with write access at "
            "https://huggingface.co/settings/tokens"
        )


def _check_repository(api: HfApi, repo_id: str, private: bool) -> None:
    api.create_repo(repo_id, private=private, exist_ok=True)
    try:
        api.auth_check(repo_id, write=True)
    except RepositoryNotFoundError:
        _refuse_another_type(api, repo_id)
        raise


def _refuse_another_type(api: HfApi, repo_id: str) -> None:
    for other in ("dataset", "space"):
        if api.repo_exists(repo_id, repo_type=other):
            raise RecipeError(f"hub_model_id: {repo_id} is a {other}; name a model repository") from None


def write_manifest(files: Path, path: Path) -> dict[str, Any]:
    """Path, size in bytes and SHA-256 of every file below `files`; read instead where it is written already."""
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    found = sorted(item for item in files.rglob("*") if item.is_file())
    manifest = {
        "schema_version": 1,
        "files": {
            item.relative_to(files).as_posix(): {"size": item.stat().st_size, "sha256": sha256_of(item)}
            for item in found
        },
    }
    write_text(path, json.dumps(manifest, indent=2) + "\n")
    return manifest


def remote_files(api: HfApi, repo_id: str, revision: str, repo_type: str = "model") -> dict[str, RepoFile]:
    """The files of a revision, by path."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {item.path: item for item in tree if isinstance(item, RepoFile)}


def is_same(remote: RepoFile | None, path: Path, sha256: str | None = None) -> bool:
    """Whether the Hub's file has this file's content; its `sha256` is taken where the caller does not know it."""
    if remote is None or not path.is_file() or remote.size != path.stat().st_size:
        return False
    if remote.lfs:
        return remote.lfs.sha256 == (sha256 or sha256_of(path))
    content = path.read_bytes()  # small files are known by git's id
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_weights(name: str) -> bool:
    """Whether from_pretrained would take a file of this name for a model's weights, or for where they are."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in _WEIGHTS)


def put_revision(
    api: HfApi, repo_id: str, revision: str, folder: Path, card: str, message: str, private: bool
) -> bool:
    """Make a branch hold what `folder/files` holds, its manifest and the card: one commit; `False` if it did already.

    What a checkpoint itself consists of decides: the run's curves and environment may have moved on since it was
    published. The card and the evaluation results of these weights stay as they are.
    """
    files = folder / "files"
    manifest = write_manifest(files, folder / MANIFEST)
    _make_branch(api, repo_id, revision, private)
    remote = remote_files(api, repo_id, revision)
    ours = {name: (files / name, entry["sha256"]) for name, entry in manifest["files"].items()}
    ours[MANIFEST] = (folder / MANIFEST, sha256_of(folder / MANIFEST))
    extra = sorted((remote.keys() - ours.keys() - {CARD}) & _not_of_this(api, repo_id, revision, remote))
    changed = [name for name, item in ours.items() if not is_same(remote.get(name), *item)]
    if CARD in remote and ours.keys() <= remote.keys() and not extra and {*changed} <= {MANIFEST, *OF_THE_RUN}:
        return False
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for name in changed:
        addition = CommitOperationAdd(name, str(ours[name][0]))
        addition.upload_info.sha256 = bytes.fromhex(ours[name][1])  # else every file is read a second time
        operations.append(addition)
    other_weights = any(name.endswith(".safetensors") for name in [*changed, *extra])
    if other_weights:
        extra += [name for name in remote if name.startswith(EVAL_RESULTS)]
    if other_weights or CARD not in remote:
        operations.append(CommitOperationAdd(CARD, card.encode()))
    operations += [CommitOperationDelete(name) for name in extra]
    api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return True


def _not_of_this(api: HfApi, repo_id: str, revision: str, remote: dict[str, RepoFile]) -> set[str]:
    """Files of a branch that a new revision of ours does not inherit: what an earlier one put there, other weights."""
    weights = {name for name in remote if is_weights(name)}
    if MANIFEST not in remote:
        return weights
    with tempfile.TemporaryDirectory() as folder:
        path = Path(api.hf_hub_download(repo_id, MANIFEST, revision=revision, local_dir=folder))
        try:
            return weights | {*json.loads(path.read_text(encoding="utf-8"))["files"]}
        except (ValueError, KeyError, TypeError):  # somebody else's file of that name
            return weights


def _make_branch(api: HfApi, repo_id: str, revision: str, private: bool) -> None:
    try:
        refs = api.list_repo_refs(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        _refuse_another_type(api, repo_id)
        refs = api.list_repo_refs(repo_id)
    if revision not in [branch.name for branch in refs.branches]:
        first = api.list_repo_commits(repo_id, revision=MAIN)[-1].commit_id
        api.create_branch(repo_id, branch=revision, revision=first, exist_ok=True)


def check_tag(api: HfApi, repo_id: str, tag: str, run: Path) -> None:
    """A release's name stays with its weights, which must be known before `main` is made to hold others.

    Raises:
        RecipeError: `tag` stands at other weights than the run's final model.
    """
    try:
        if tag not in [ref.name for ref in api.list_repo_refs(repo_id).tags]:
            return
    except RepositoryNotFoundError:
        return
    there = {name: file for name, file in remote_files(api, repo_id, tag).items() if name.endswith(".safetensors")}
    ours = {path.name: path for path in run.glob("*.safetensors")}
    if there.keys() != ours.keys() or not all(is_same(there[name], path) for name, path in ours.items()):
        raise _another_release(repo_id, tag)


def _another_release(repo_id: str, tag: str) -> RecipeError:
    return RecipeError(f"{repo_id}: tag {tag} is another release's; name a new one")


def release(api: HfApi, repo_id: str, tag: str | None) -> str:
    """Tag what `main` holds, unless it is tagged: with `tag`, or the next free of `v1`, `v2`, ….

    Raises:
        RecipeError: `tag` stands at other weights.
    """
    tags = [ref.name for ref in api.list_repo_refs(repo_id).tags]
    numbers = sorted(int(name[1:]) for name in tags if re.fullmatch(r"v\d+", name))
    weights = weights_of(api, repo_id, MAIN)
    if tag is not None and tag in tags:
        if weights_of(api, repo_id, tag) != weights:
            raise _another_release(repo_id, tag)
        return tag
    if tag is None and numbers and weights_of(api, repo_id, f"v{numbers[-1]}") == weights:
        return f"v{numbers[-1]}"
    name = tag or f"v{numbers[-1] + 1 if numbers else 1}"
    api.create_tag(repo_id, tag=name, revision=MAIN, exist_ok=True)
    return name


def release_of(api: HfApi, repo_id: str, revision: str, weights: dict[str, str] | None = None) -> str:
    """The release tag whose weights `main` holds, `main` if there is none; any other revision is its own name.

    Args:
        api: the Hub.
        repo_id: the model.
        revision: of it.
        weights: those that `main` held once; default: those that it holds.
    """
    if revision != MAIN:
        return revision
    weights = weights or weights_of(api, repo_id, MAIN)
    tags = [ref.name for ref in api.list_repo_refs(repo_id).tags]
    return next((name for name in reversed(tags) if weights_of(api, repo_id, name) == weights), MAIN)


def weights_of(api: HfApi, repo_id: str, revision: str) -> dict[str, str]:
    """The weight files of a revision: path → SHA-256, or git's id of a small one."""
    files = remote_files(api, repo_id, revision).values()
    return {
        item.path: item.lfs.sha256 if item.lfs else item.blob_id
        for item in files
        if item.path.endswith(".safetensors")
    }


def licence_of(api: HfApi, base: str | None) -> dict[str, str]:
    """What a base model's own card says: `license`, and the name and link of one that is `other`; else empty."""
    if not is_hub_id(base):
        return {}
    try:
        data = api.model_info(str(base)).card_data
    except HfHubHTTPError as error:
        if hub_is_away(error):
            raise
        return {}
    said = data.to_dict() if data is not None and isinstance(data.license, str) else {}
    found = {name: said[name] for name in _LICENCE if isinstance(said.get(name), str)}
    if "://" not in found.get("license_link", "://"):  # a file of the base's own repository
        found["license_link"] = f"https://huggingface.co/{base}/blob/main/{found['license_link']}"
    return found
