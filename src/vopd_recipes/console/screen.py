"""The one screen of a process: a terminal with colours, frames and progress bars, or the plain lines of a log.

Who prints beside it writes over a bar; so lines, bars and warnings all go through here. While `noise.Noise` has the
process's own standard streams, the screen is what they were before.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

from tqdm import tqdm

from vopd_recipes.console.lines import WIDTH, Rows, rows_text, wrapped


class Screen:
    """Standard output, and standard error for what ends a run."""

    def __init__(self) -> None:
        self._out: TextIO | None = None
        self._errors: TextIO | None = None

    def use(self, out: TextIO | None, errors: TextIO | None) -> None:
        """Print there; `None`: where everybody does."""
        self._out, self._errors = out, errors

    @property
    def out(self) -> TextIO:
        """Of lines and bars."""
        return self._out or sys.stdout

    @property
    def errors(self) -> TextIO:
        """Of the line that says why a run ends."""
        return self._errors or sys.stderr

    @property
    def for_children(self) -> TextIO | None:
        """Standard error of a process that speaks to people, too; `None`: as it is."""
        return self._errors

    @property
    def is_terminal(self) -> bool:
        """Whether somebody watches, and not a file."""
        return self.out.isatty()

    @property
    def has_bars(self) -> bool:
        """Whether a bar is drawn at all: in a log every stroke of one would be a line."""
        return self._out is None or self.is_terminal

    def line(self, text: str, style: str = "") -> None:
        """One line as it is; above any bar."""
        self._print([text], style)

    def paragraph(self, text: str, style: str = "") -> None:
        """A text of any length."""
        self._print(wrapped(text), style)

    def box(self, title: str, rows: Rows, style: str = "") -> None:
        """Labels and texts under a title, in a frame on a terminal."""
        if not self.is_terminal:
            rule = f"── {title} ".ljust(WIDTH, "─")
            return self._print([rule, *(f"  {line}" for line in rows_text(rows, WIDTH - 2)), "─" * WIDTH])
        from rich.panel import Panel  # late, here and below: who only uploads or plots has no use for it
        from rich.text import Text

        width = min(WIDTH, self._rich().width)
        content = Text("\n".join(rows_text(rows, width - 4)))
        column = max(len(label) for label, _ in rows)
        content.highlight_regex(rf"(?m)^\S.{{0,{column - 1}}}", "bold")
        panel = Panel(content, title=title, title_align="left", border_style=style, width=width)
        with tqdm.external_write_mode(file=self.out):
            self._rich().print(panel)
        return None

    def bar(self, *arguments: Any, disable: bool = False, **more: Any) -> Any:
        """A progress bar of transformers' kind, where there are any."""
        from transformers.utils.logging import tqdm as bar  # late, as above

        if self._out is not None:
            more["file"] = self._out
        return bar(*arguments, disable=disable or not self.has_bars, **more)

    def _print(self, lines: list[str], style: str = "") -> None:
        with tqdm.external_write_mode(file=self.out):
            for line in lines:
                if style and self.is_terminal:
                    self._rich().print(line, style=style, soft_wrap=True)
                else:
                    print(line, file=self.out, flush=True)

    def _rich(self) -> Any:
        from rich.console import Console

        return Console(file=self.out, highlight=False, markup=False, emoji=False)


screen = Screen()


class OnScreen(logging.Handler):
    """What a library of ours logs, and errors of anybody's, each said once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print it, unless it was said before."""
        ours, text = record.name.partition(".")[0] == "vopd_recipes", self.format(record)
        if text in self._said or not (ours or record.levelno >= logging.ERROR):
            return
        self._said.add(text)
        screen.paragraph(text, "yellow" if record.levelno >= logging.WARNING else "")
