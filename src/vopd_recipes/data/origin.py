"""Which bytes a source is: the SHA-256 of a local file, the commit of a set on the Hub.

A path or a name says where rows come from and not what they are: a file is written anew, a branch moves on. The
summary of a training set holds the origin of its source and of each evaluation set, a set on the Hub is read at that
commit, and a folder counts as made before only where all of them are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import httpx
import huggingface_hub.constants
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from vopd_recipes.data.recipe import Source
from vopd_recipes.files import sha256_of
from vopd_recipes.hub import hub_is_away
from vopd_recipes.recipe import is_hub_id

Origin = dict[str, str]  # sha256 or revision; empty where nobody can tell

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATIENCE = 30.0  # seconds for one answer of the Hub
_Source = TypeVar("_Source", bound=Source)


def origin_of(source: Source) -> Origin:
    """The file's hash or the Hub's commit; empty if neither is there, which reading the rows will say better."""
    path = Path(source.dataset_name)
    if path.is_file():
        return {"sha256": sha256_of(path)}
    if source.dataset_revision and _COMMIT.fullmatch(source.dataset_revision):
        return {"revision": source.dataset_revision}
    if not is_hub_id(source.dataset_name):
        return {}
    try:
        found = HfApi().dataset_info(source.dataset_name, revision=source.dataset_revision, timeout=_PATIENCE)
    except (HfHubHTTPError, HFValidationError, httpx.TransportError, OfflineModeIsEnabled) as error:
        if hub_is_away(error):
            ask_only_the_cache()
        return {}
    return {"revision": found.sha} if found.sha else {}


def pinned(source: _Source, origin: Origin) -> _Source:
    """The source at the commit that its origin names."""
    return replace(source, dataset_revision=origin["revision"]) if "revision" in origin else source


def is_same(recorded: Origin | None, now: Origin | None) -> bool:
    """Whether a source is still what it was: a commit on the Hub is while nobody can ask for a newer one."""
    return recorded == now or (recorded is not None and "revision" in recorded and not now)


@contextmanager
def hub_asked_once() -> Iterator[None]:
    """Within, a Hub that could not be reached is not asked again, see `ask_only_the_cache`; afterwards it is."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def ask_only_the_cache() -> None:
    """From now on, until `hub_asked_once` ends: the client tries for half a minute, for every set again."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True
