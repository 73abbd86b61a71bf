"""The one error of this library that a person at a terminal is meant to read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class RecipeError(ValueError):
    """One line for the person at the terminal: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # values and other people's messages come with line breaks


def one_line(error: object, limit: int | None = None) -> str:
    """What somebody else's error says, on one line, and of no more than so many characters."""
    return " ".join(str(error).split())[:limit]


@contextmanager
def one_line_errors(kind: type[Exception] = RecipeError) -> Iterator[None]:
    """Around a command's `main`: what is wrong with its input is printed as one line, and the exit status is 2."""
    try:
        yield
    except kind as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
