"""Which names are a repository's on the Hub, and which a folder's."""

from __future__ import annotations

import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_hub_id(name: str | None) -> bool:
    """Whether a name in a published recipe is a repository's: folders begin with `./`."""
    if not name or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)) is None:
        return False
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return True
