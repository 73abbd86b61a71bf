"""Text that may leave this machine: no token, no password in an address, no home folder, no user name.

A run's recipe and its adapters' configuration name folders of the machine they were made on. What is published names
them relative to the working folder (`./data/student`), or by their last part where they lie elsewhere; `./` also tells
a folder from a Hub id, which looks the same without it. Everything that is JSON or YAML is rewritten value by value
and name by name, and left as it is, byte for byte, where nothing had to go.
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
_NAMES = (
    "model_name_or_path", "teacher_model_name_or_path", "base_model_name_or_path", "tokenizer_name_or_path",
    "dataset_name",
)  # fmt: skip
# And those that hold a Hub id, which may begin with its owner's name: it stays.
_HUB_IDS = (*_NAMES, "hub_model_id", "model", "teacher_server_model", "prepared_from", "source")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@\w+)?")
# Free names that people put themselves into.
_FREE = ("run_name", "output_dir", "logging_dir", "project")
_SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)$")
# What the Hub, GitHub, OpenAI and its like, Slack and AWS begin theirs with; long enough to be no word.
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|sk-(?=[\w-]*\d)[\w-]{20,}"
    r"|xox[abeoprs]-(?=[\w-]*\d)[\w-]{16,}|AKIA[0-9A-Z]{16})"
)
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/\s?#\"'<>]*@")
# A home's name may have blanks, but then a slash must say where it ends.
_HOMES = re.compile(r"/(?:home|Users)/(?:[^/\s\"']+(?: [^/\s\"']+){0,2}/|[^/\s\"']+)")
_ABSOLUTE = re.compile(r"(?:file://(?=/)|[/~]|\.\./)[^\s{}]*/[^\s{}]*|/(?:home|Users)/[^\n{}]*")
# A word with a slash; not the end of a tag (`</think>`), which chat templates are full of.
_PATH = re.compile(r"(?:(?<!<)/|[^\s<>/]+/)[^\s<>]*")


def scrub(value: Any, field: str = "") -> Any:
    """A JSON value without what is private.

    Args:
        value: mapping, list, text or number.
        field: the name it stands under.
    """
    if isinstance(value, dict):
        return {scrub(name): scrub(item, str(name)) for name, item in value.items()}
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
    text = _USER_IN_ADDRESS.sub("", _TOKEN.sub("[removed]", text))
    for secret in _secrets():
        text = text.replace(secret, "[removed]")
    if _ABSOLUTE.fullmatch(text) or (field in _NAMES and not text.startswith("./") and Path(text).exists()):
        return _relative(text.removeprefix("file://"))
    if field in _HUB_IDS and _HUB_ID.fullmatch(text):
        return text
    home = _home()
    if len(home) > 1:
        text = text.replace(f"{home}/", "")
    text = _HOMES.sub("", text)
    return _without_user(text) if field in _FREE else _PATH.sub(lambda path: _without_user(path[0]), text)


def _secrets() -> list[str]:
    return [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8]


def _relative(text: str) -> str:
    """`./` and the path from the working folder, or its last part where it is not below that."""
    if text.startswith("~/"):
        text = _home() + text[1:]
    path = Path(os.path.abspath(text))  # noqa: PTH100  # resolve() would follow links
    if str(path) == _home():
        return "./"
    inside = path.is_relative_to(Path.cwd()) and path != Path.cwd()
    return "./" + _without_user(str(path.relative_to(Path.cwd()) if inside else path.name))


def _home() -> str:
    """The home folder; empty where a container's user has none."""
    try:
        return str(Path.home())
    except RuntimeError:
        return ""


def _without_user(text: str) -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name: then there is none to take out
        return text
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "user", text)
