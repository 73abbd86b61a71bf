"""Elements that every part of the page is made of."""

from __future__ import annotations

from collections.abc import Sequence

from vopd_recipes.reporting.charts import COLOURS
from vopd_recipes.reporting.escaping import escaped
from vopd_recipes.reporting.runs import Group


def section(title: str, note: str, body: str) -> str:
    """A part of the page under its heading; nothing where it has no body."""
    return f"<section><h2>{title}</h2><p class=note>{note}</p>{body}</section>" if body else ""


def key(group: int) -> str:
    """The square in a group's colour."""
    return f'<i class="key c{group % COLOURS}"></i>'


def legend(groups: Sequence[Group]) -> str:
    """Each group beside its colour."""
    keys = "".join(f"<span>{key(index)}{escaped(group.label)}</span>" for index, group in enumerate(groups))
    return f"<div class=legend>{keys}</div>"


def cell(heading: str, content: str, classes: str = "") -> str:
    """A table's cell that carries its heading, for screens too narrow for columns."""
    return f'<td class="{classes}" data-heading="{escaped(heading)}"><span>{content}</span></td>'
