"""The text of what a run says, line by line: the table of its steps, what was measured on held-out prompts, a box.

The table has its names in a heading and not in every line, so that a line fits a terminal of 80 columns up to a run of
999 steps, and a log stays below 100 with any. Nothing here knows where it is printed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 98  # columns at most; a box's frame included
Rows = Sequence[tuple[str, str]]  # label and text; an empty label goes on with the row before

# Of a training line: heading, columns, form.
_COLUMNS = {
    "reverse_kl": ("reverse KL", 10, "{:.4f}"),
    "grad_norm": ("grad norm", 9, "{:.3g}"),
    "advantage/std": ("adv. std", 8, "{:.3g}"),
    "completion/length": ("length", 6, "{:,.0f}"),
    "completion/truncated": ("truncated", 9, "{:.0%}"),
    "tokens_per_second": ("tokens/s", 8, "{:,.0f}"),
}
_LEFT = 8
# What is measured on held-out prompts: name, form.
MEASURED = {"eval_accuracy": ("accuracy", "{:.1%}"), "eval_reverse_kl": ("reverse KL", "{:.4f}")}
_LONG_WORD = 60


def heading(steps: int) -> str:
    """Of the table of that many steps."""
    titles = [f"{'step':>{_step_width(steps)}}", *(f"{title:>{width}}" for title, width, _ in _COLUMNS.values())]
    return "  ".join([*titles, f"{'left':>{_LEFT}}"])


def step_line(step: int, steps: int, logs: Mapping[str, float], seconds_left: float) -> str:
    """A row of the table; what was not measured stays empty."""
    cells = [f"{f'{step}/{steps}':>{_step_width(steps)}}"]
    for name, (_, width, form) in _COLUMNS.items():
        cells.append(f"{form.format(logs[name]) if name in logs else '':>{width}}")
    return "  ".join([*cells, f"{duration(seconds_left):>{_LEFT}}"])


def held_out_line(step: int, logs: Mapping[str, float], first: Mapping[str, float] | None) -> str:
    """An evaluation beside the run's first one.

    Args:
        step: after which it was made.
        logs: its metrics.
        first: those of the first evaluation; `None` where this is it.
    """
    parts = []
    for name, (title, form) in MEASURED.items():
        if name in logs:
            was = f" (first {form.format(first[name])})" if first and name in first else ""
            parts.append(f"{title} {form.format(logs[name])}{was}")
    return f"── held out, step {step}: {', '.join(parts)}"


def before_and_after(history: Sequence[Mapping[str, float]]) -> Rows:
    """What a run has changed: each measure at its first and last evaluation, or else the first and last step's."""
    evaluated = any(MEASURED.keys() & line.keys() for line in history)
    rows: list[tuple[str, str]] = []
    for name, (title, form) in (MEASURED if evaluated else {"reverse_kl": MEASURED["eval_reverse_kl"]}).items():
        values = [line[name] for line in history if name in line]
        if values:
            label = "" if rows else "held out" if evaluated else "training"
            rows.append((label, f"{title} {form.format(values[0])} → {form.format(values[-1])}"))
    return rows


def duration(seconds: float) -> str:
    """`2:05`, `1:02:05` or `1d 04:12`: days, hours and minutes."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def wrapped(text: str, width: int = WIDTH, indent: str = "  ") -> list[str]:
    """A text in lines of that width, but for one with a long path in it, which is left to be copied."""
    if any(len(word) > _LONG_WORD for word in text.split()):
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def rows_text(rows: Rows, width: int) -> list[str]:
    """Labels in a column, their texts in another."""
    column = max(len(label) for label, _ in rows) + 2
    lines = []
    for label, text in rows:
        first, *more = wrapped(text, width - column, "")
        lines += [f"{label:{column}}{first}", *(" " * column + line for line in more)]
    return lines


def _step_width(steps: int) -> int:
    return max(2 * len(str(steps)) + 1, len("step"))
