"""The one error of this library that a person at a terminal is meant to read."""

from __future__ import annotations


class RecipeError(ValueError):
    """One line for the person at the terminal: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # values and other people's messages come with line breaks


def one_line(error: object, limit: int = 300) -> str:
    """What somebody else's error says, on one line of no more than so many characters."""
    return " ".join(str(error).split())[:limit]
