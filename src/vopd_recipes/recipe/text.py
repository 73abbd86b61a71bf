"""The text of a recipe and of a command line becomes typed values, each with the place that it came from.

YAML and flags are read here and not by argparse over the dataclasses, which knows neither the line of a YAML value nor
its nearest name, and passes `1e-5`, which YAML reads as a string, on as one.
"""

from __future__ import annotations

import difflib
import operator
import re
import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from vopd_recipes.recipe.errors import RecipeError, one_line

_RENAMED = {"baseline_support": "support"}

Lines = dict[str, tuple[Any, str]]  # field → its value and where that stands: `file:line` or `--field`
Extend = Callable[[Lines, Lines], Lines]


class _StandsTwice(yaml.MarkedYAMLError):
    """A key does, in one mapping."""


class _Loader(yaml.SafeLoader):
    """YAML of which nothing is lost: of a key that stands twice, its own loader keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As it is written: what `<<` merges is not there yet, and may stand beside a key of the same name."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise _StandsTwice(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Also what only looks like a date, such as 2025-06-31, is an error with a place."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # its constructors raise what Python's own do: ValueError, KeyError
            problem = f"{node.value}: {one_line(error)}; put a text into quotes"
            raise yaml.MarkedYAMLError(None, None, problem, node.start_mark) from error


class Word(str):
    """A word of a table that the field's owner looks up; `none` may be one, and is not null."""


def read_fields(
    path: Path, overrides: list[str] | None, hints: dict[str, Any], extend: Extend = operator.or_
) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe, what it extends and the flags over both, as typed values.

    Args:
        path: the YAML file.
        overrides: command-line words, `--field value …`.
        hints: name → type of every field there may be.
        extend: see `read_yaml`.

    Returns:
        The values that are set, and where each stands.

    Raises:
        RecipeError: see `check_fields`, and text that is not a recipe's.
    """
    return check_fields({**read_yaml(path, (), extend), **read_flags(overrides or [], hints)}, hints)


def check_fields(values: Lines, hints: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values as the hints' types, and where each stands.

    Raises:
        RecipeError: an unknown field, with the nearest name, or a value of another type.
    """
    checked = {}
    for name, (value, where) in values.items():
        if name not in hints:
            now = _RENAMED.get(name)
            hint = f"; it is called {now} now" if now in hints else nearest(name, hints)
            raise RecipeError(f"{where}: unknown field '{name}'{hint}")
        try:
            checked[name] = coerce(value, hints[name])
        except TypeError:
            raise RecipeError(f"{where}: {name} must be {describe_type(hints[name])}, got {value!r}") from None
    return checked, {name: where for name, (_, where) in values.items()}


def read_yaml(path: Path, seen: tuple[Path, ...], extend: Extend = operator.or_) -> Lines:
    """Fields of a recipe and of what it extends: name → (value, `file:line`).

    Args:
        path: the recipe.
        seen: the files that extend it.
        extend: what comes of an extended file's fields and those of the file that names it.
    """
    if path.resolve() in seen:
        raise RecipeError(f"{path}: extends itself, by way of {' → '.join(str(p.name) for p in seen)}")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeError(f"{path}: cannot read the recipe: {reason}") from None
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from None
    own = _mapping(loader, path)
    extended, where = own.pop("extends", (None, ""))
    if extended is None:
        return own
    if not isinstance(extended, str):
        raise RecipeError(f"{where}: extends must be a file name, got {extended!r}")
    base = path.parent / extended
    if not base.is_file():
        raise RecipeError(f"{where}: extends: no such file: {base}")
    return extend(read_yaml(base, (*seen, path.resolve()), extend), own)


def _mapping(loader: _Loader, path: Path) -> Lines:
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}: a recipe is a list of `field: value` lines")
        values: Lines = {}
        for key_node, value_node in node.value:
            where = f"{path}:{key_node.start_mark.line + 1}"
            name = str(loader.construct_object(key_node))
            values[name] = (loader.construct_object(value_node, deep=True), where)
        return values
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from None


def _yaml_error(path: Path, error: yaml.YAMLError) -> RecipeError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        what = "" if isinstance(error, _StandsTwice) else "not YAML that a recipe may hold: "
        return RecipeError(f"{path}:{error.problem_mark.line + 1}: {what}{error.problem}")
    return RecipeError(f"{path}: {one_line(error)}")


def read_flags(words: list[str], hints: dict[str, Any]) -> Lines:
    """`--field value`, `--field=value`, `--switch`, `--field a b` of a list: name → (value, `--field`)."""
    values: dict[str, list[str]] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in values:
                raise RecipeError(f"--{name}: given twice")
            values[name] = [value] if equals else []
        elif name is None:
            raise RecipeError(f"'{word}': expected --field value; a command has one recipe")
        elif re.fullmatch(r"-[^\W\d][\w-]*", word):
            raise RecipeError(f"'{word}': a flag begins with two dashes; where it is a value, write --{name}={word}")
        elif values[name] and _is_text(hints.get(name)):
            raise RecipeError(
                f"'{word}': --{name} has its value, '{values[name][0]}'; put a text with spaces into quotes"
            )
        else:
            values[name].append(word)
    return {name: (_flag_value(name, words, hints.get(name)), f"--{name}") for name, words in values.items()}


def _flag_value(name: str, words: list[str], hint: Any) -> Any:
    if not words:
        return True
    if _is_text(hint):
        return None if words[0] in ("null", "none", "None") and _accepts(hint, types.NoneType) else words[0]
    try:
        parsed = [yaml.load(word, _Loader) for word in words]  # a SafeLoader
    except _StandsTwice as error:
        raise RecipeError(f"--{name}: {error.problem}") from None
    except yaml.YAMLError:
        parsed = list(words)
    return parsed[0] if len(parsed) == 1 else parsed


def _is_text(hint: Any) -> bool:
    return hint is not None and _accepts(hint, str) and not _accepts(hint, list)


def _accepts(hint: Any, kind: type) -> bool:
    return any(option is kind or get_origin(option) is kind for option in _options(hint))


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself; text beside an enum is that enum's spelling, not any text."""
    if get_origin(hint) not in (Union, types.UnionType):
        return (hint,)
    members = tuple(option for member in get_args(hint) for option in _options(member))
    return tuple(option for option in members if option is not str) if any(map(_is_enum, members)) else members


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def coerce(value: Any, hint: Any) -> Any:
    """The value as the hint's type; numbers that YAML reads as text (1e-5) are read as numbers."""
    for candidate in _options(hint):
        try:
            return _coerce_one(value, candidate)
        except (TypeError, ValueError, OverflowError):
            continue
    raise TypeError


def _coerce_one(value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if kind is types.NoneType and value is None:
        return None
    if origin is Literal and value in get_args(kind) and not isinstance(value, bool):
        return value
    if origin in (list, dict) and isinstance(value, origin):
        if origin is list:
            return [coerce(item, get_args(kind)[0]) for item in value]
        return value
    if isinstance(kind, type) and origin is None:
        return _coerce_plain(value, kind)
    raise TypeError


def _coerce_plain(value: Any, kind: type) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = float(value)
        if kind is int and number != int(number):
            raise ValueError
        return kind(number) if kind is int and isinstance(value, float) else kind(value)
    if _is_enum(kind):
        return kind("no" if value is False else value).value  # YAML reads a bare `no` as false
    if kind is Word and isinstance(value, str):
        return value
    if kind in (str, dict) and isinstance(value, kind):
        return value
    raise TypeError


def describe_type(hint: Any) -> str:
    words = []
    for candidate in _options(hint):
        if candidate is types.NoneType:
            words.append("null")
        elif get_origin(candidate) is Literal:
            words.append("one of " + ", ".join(map(str, get_args(candidate))))
        elif _is_enum(candidate):
            words.append("one of " + ", ".join(str(member.value) for member in candidate))
        else:
            names = {int: "a whole number", float: "a number", str: "text", Word: "a word", bool: "true or false"}
            words.append(names.get(candidate, "a list" if get_origin(candidate) is list else "a mapping"))
    return " or ".join(dict.fromkeys(words))


def nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""
