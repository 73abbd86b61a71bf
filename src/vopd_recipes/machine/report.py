"""What the check says: a green line for what is right, a red one for a fault, with what to do."""

from __future__ import annotations

import os
import sys

_GREEN, _RED, _PLAIN = "\033[32m", "\033[31m", "\033[0m"
_WIDTH = 11  # of the widest name


class Report:
    """Prints as it goes, so that a check which hangs has said where.

    Args:
        rank: of this process; only the first says what is right.
    """

    def __init__(self, rank: int = 0) -> None:
        self.faults = 0
        self._rank = rank
        encodes = (sys.stdout.encoding or "").lower().startswith("utf")
        self._marks = ("✓", "✗") if encodes else ("ok", "FAULT")
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def right(self, name: str, text: str) -> None:
        """One line."""
        if self._rank == 0:
            self._print(_GREEN, self._marks[0], name, text)

    def fault(self, name: str, text: str, remedy: str) -> None:
        """One line, of whichever process found it."""
        self.faults += 1
        where = f"rank {self._rank}: " if self._rank else ""
        self._print(_RED, self._marks[1], name, f"{where}{text}; {remedy}" if remedy else f"{where}{text}")

    def judge(self, name: str, is_right: bool, text: str, remedy: str) -> None:
        """One of the two. For what every process knows alike: the first says it."""
        if is_right:
            self.right(name, text)
        elif self._rank == 0:
            self.fault(name, text, remedy)
        else:
            self.faults += 1

    def _print(self, colour: str, mark: str, name: str, text: str) -> None:
        line = f"{mark} {name:{_WIDTH}} {' '.join(text.split())}"
        print(f"{colour}{line}{_PLAIN}" if self._coloured else line, flush=True)
