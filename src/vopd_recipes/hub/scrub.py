"""Text that may leave this machine: no token, no home folder, no user name.

A run's recipe and its adapters' configuration name folders of the machine they were made on. What is published names
them relative to the working folder (`./data/student`), or by their last part where they lie elsewhere; `./` also tells
a folder from a Hub id, which looks the same without it. Everything that is JSON or YAML is rewritten value by value,
and left as it is, byte for byte, where nothing had to go.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

# Fields that hold a Hub id or a folder.
_NAMES = ("model_name_or_path", "teacher_model_name_or_path", "base_model_name_or_path", "dataset_name")
# Free names that people put themselves into.
_FREE = ("run_name", "output_dir", "logging_dir", "project")
_SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)$")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_HOMES = re.compile(r"/(?:home|Users)/[^/\s\"']+/?")
_ABSOLUTE = re.compile(r"[/~][^\s{}]*/[^\s{}]*")


def scrub(value: Any, field: str = "") -> Any:
    """A JSON value without what is private.

    Args:
        value: mapping, list, text or number.
        field: the name it stands under.
    """
    if isinstance(value, dict):
        return {name: scrub(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [scrub(item, field) for item in value]
    return _scrub_text(value, field) if isinstance(value, str) else value


def scrub_file(content: bytes, name: str) -> bytes:
    """A JSON or YAML file without what is private: the same bytes where nothing is.

    Args:
        content: the file's bytes.
        name: its name, which tells the format.
    """
    is_json = name.endswith(".json")
    before = json.loads(content) if is_json else yaml.safe_load(content)
    after = scrub(before)
    if after == before:
        return content
    text = (
        json.dumps(after, indent=2) + "\n" if is_json else yaml.safe_dump(after, sort_keys=False, allow_unicode=True)
    )
    return text.encode()


def _scrub_text(text: str, field: str) -> str:
    text = _TOKEN.sub("[removed]", text)
    for secret in _secrets():
        text = text.replace(secret, "[removed]")
    if _ABSOLUTE.fullmatch(text) or (field in _NAMES and not text.startswith("./") and Path(text).exists()):
        return _relative(text)
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(f"{home}/", "")
    text = _HOMES.sub("", text)
    return _without_user(text) if field in _FREE else text


def _secrets() -> list[str]:
    return [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8]


def _relative(text: str) -> str:
    """`./` and the path from the working folder, or its last part where it is not below that."""
    path = Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100  # resolve() would follow links
    inside = path.is_relative_to(Path.cwd()) and path != Path.cwd()
    return "./" + _without_user(str(path.relative_to(Path.cwd()) if inside else path.name))


def _without_user(text: str) -> str:
    return re.sub(rf"\b{re.escape(getpass.getuser())}\b", "user", text)
