"""Rows of JSON lines and of one JSON array, decoded as they arrive; what cannot be decoded is a row that is left out.

The end of an array's item that is not JSON (`{"a": 1,}`, an integer of 5,000 digits, brackets 5,000 deep) is found by
its brackets and strings. Where these do not match, nobody can tell where the next item starts: that is an error, as an
array that breaks off is.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from vopd_recipes.data.rows import Left, Row
from vopd_recipes.recipe import RecipeError

_LONGEST = 64 << 20  # bytes of JSON for one row
_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"(?:[^"\\]+|\\.)*+(")?|[\[\]{},]', re.DOTALL)
_NOTHING = object()


def json_rows(file: BinaryIO, name: str) -> Iterator[Row | Left]:
    """The rows of a file of JSON.

    Args:
        file: from its start; seekable.
        name: for messages; an array may stand in a `.json` file only.

    Raises:
        RecipeError: an array that breaks off or goes on after its end.
    """
    start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    file.seek(0)
    return _items(file, name) if name.endswith(".json") and start == b"[" else _lines(file)


def _lines(file: BinaryIO) -> Iterator[Row | Left]:
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST and not line.endswith(b"\n"):
            while (rest := file.readline(_LONGEST)) and not rest.endswith(b"\n"):
                pass
            yield Left("malformed", f"a line over {_LONGEST >> 20} MiB")
        elif line.strip():
            yield _row_of(line)


def _row_of(line: bytes) -> Row | Left:
    try:
        return _checked(json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return Left("malformed", "not UTF-8")
    except (ValueError, RecursionError):
        return Left("malformed", "not JSON")


def _checked(row: Any) -> Row | Left:
    return row if isinstance(row, (dict, Left)) else Left("malformed", "not an object")


def _items(file: BinaryIO, name: str) -> Iterator[Row | Left]:
    decoder, more = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
    text, number = more.decode(file.read(_CHUNK)), 0
    at, size = text.index("[") + 1, _CHUNK
    while True:
        found = _item(decoder, text, at)
        if found is None:  # the item goes on after this chunk
            block = file.read(size) if len(text) - at < _LONGEST else b""
            if not block:
                raise RecipeError(f"dataset_name: {name}: item {number} of the array is not JSON")
            text, at, size = text[at:] + more.decode(block), 0, 2 * size  # twice: one long item stays linear
            continue
        row, at, is_last = found
        if row is not _NOTHING:
            yield _checked(row)
        if is_last:
            _at_the_end(text[at:], file, name, number)
            return
        number, size = number + 1, _CHUNK


def _at_the_end(rest: str, file: BinaryIO, name: str, number: int) -> None:
    """A bracket too many in an item looks like the end of the array: then rows would be lost without a word."""
    while not rest.strip():
        if not (block := file.read(_CHUNK)):
            return
        rest = block.decode("utf-8", errors="replace")
    raise RecipeError(f"dataset_name: {name}: the array ends at item {number}, and something follows")


def _item(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int, bool] | None:
    """An item, where the next one starts, and whether it is the last; `None` where the text is not enough to tell."""
    at = _past_space(text, at)
    if text[at : at + 1] == "]":
        return _NOTHING, at + 1, True
    try:
        row, end = decoder.raw_decode(text, at)
        end = _past_space(text, end)
    except (ValueError, RecursionError):
        row, end = None, len(text)
    if text[end : end + 1] not in (",", "]"):
        if (found := _end_of_item(text, at)) is None:
            return None
        row, end = Left("malformed", "not JSON"), found
    return row, end + 1, text[end] == "]"


def _end_of_item(text: str, at: int) -> int | None:
    """Where the comma or the bracket is that ends the item, whatever the item is; `None` if it is not there yet."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        kind = token[0][0]
        if kind == '"':
            if token[1] is None:
                return None  # a string that goes on
        elif kind in "[{":
            depth += 1
        elif depth == 0 and kind in ",]":
            return token.start()
        elif kind in "]}":
            depth = max(0, depth - 1)
    return None


def _past_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
