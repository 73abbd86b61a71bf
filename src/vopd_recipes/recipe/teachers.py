"""Several teachers in one recipe: a mapping from a name to the fields that say who teaches and where.

    teachers:
      sums: {teacher_model_name_or_path: org/sums}
      code: {teacher_backend: server, teacher_server_url: http://node7:8000}

What an entry leaves out is the recipe's own field of that name, where its kind of teacher has one, and `teacher_` in
front of a name may be left out.
Each teacher then has a recipe of its own in which it is the only one, so that whoever loads, asks or plans for a
teacher knows nothing of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vopd_recipes.recipe.errors import RecipeError
from vopd_recipes.recipe.text import check_fields, nearest

# Of one teacher each; beside `teachers` they would name another.
NAMING = (
    "teacher_model_name_or_path", "teacher_model_revision", "teacher_server_url", "teacher_server_model"
)  # fmt: skip
FIELDS = (
    *NAMING, "teacher_dtype", "teacher_backend", "teacher_offload", "teacher_server_scores", "teacher_server_timeout"
)  # fmt: skip
# Of one kind of teacher each; an entry of the other kind does not inherit them.
OF_BACKEND = {"teacher_offload": "local", "teacher_server_scores": "server"}
_PREFIX = "teacher_"


def read_teachers(entries: dict[Any, Any], hints: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries with typed values under the recipe's names.

    Args:
        entries: of the recipe.
        hints: name → type of every field.

    Raises:
        RecipeError: no teacher, a name that a metric cannot have, an unknown field or a value of another type.
    """
    if not entries:
        raise RecipeError("teachers: names none; give each teacher a name and its fields, or leave it out")
    known = {name: hints[name] for name in FIELDS}
    read: dict[str, dict[str, Any]] = {}
    for name, fields in entries.items():
        where = f"teachers: {name}"
        if not re.fullmatch(r"[\w.-]+", str(name)):
            raise RecipeError(f"{where}: a name is made of letters, digits, '_', '.' and '-'")
        if str(name) in read:  # as a number and as text
            raise RecipeError(f"{where} stands twice; give each teacher a name of its own")
        if not isinstance(fields, dict):
            raise RecipeError(f"{where}: expected a mapping of fields such as {FIELDS[0]}, got {fields!r}")
        lines = {}
        for key, value in fields.items():
            field = key if str(key).startswith(_PREFIX) else f"{_PREFIX}{key}"
            if field not in known:
                short = [each.removeprefix(_PREFIX) for each in known]
                raise RecipeError(f"{where}: unknown field '{key}'{nearest(str(key), [*known, *short])}")
            if field in lines:
                raise RecipeError(f"{where}: {field} stands twice")
            lines[field] = (value, where)
        read[str(name)], _ = check_fields(lines, known)
    return read


def models_of_teachers(recipe: Mapping[str, Any]) -> dict[str | None, str]:
    """What teaches, by name, in words for people; `None` is the name of the only one.

    Args:
        recipe: resolved.
    """
    entries = recipe.get("teachers") or {None: {}}
    named = {}
    for name, entry in entries.items():
        fields = {**recipe, **entry}
        model = fields.get("teacher_model_name_or_path") or fields.get("teacher_server_model")
        named[name] = str(model or "a model behind a server")
    return named


@contextmanager
def of_teacher(name: str | None) -> Iterator[None]:
    """What is wrong in the block is said of the teacher with this name; of the only one without one."""
    try:
        yield
    except ValueError as error:
        if name is None:
            raise
        raise RecipeError(f"teachers: {name}: {error}") from error


def check_routes(teachers: dict[str, Any] | None, sources: list[dict[str, Any]], column: str | None) -> None:
    """Every prompt has a teacher, and every teacher may have prompts.

    Args:
        teachers: of the recipe, by name.
        sources: of its prompts, each with the `teacher` that it names or `None`.
        column: in which each row names its teacher.

    Raises:
        RecipeError: something else.
    """
    named = [source["teacher"] for source in sources if source["teacher"] is not None]
    route = "teacher_column" if column else "dataset_mixture: teacher"
    if not teachers:
        if named or column:
            raise RecipeError(f"{route}: there are no teachers to choose from; name them in teachers")
        return
    for name in named:
        if name not in teachers:
            hint = f"{nearest(name, teachers)}; it has {', '.join(teachers)}"
            raise RecipeError(f"dataset_mixture: teacher: '{name}' is not in teachers{hint}")
    if column and named:
        raise RecipeError("teacher_column, dataset_mixture: both say whose a prompt is; keep one of them")
    if column:
        return
    if named and len(named) < len(sources):
        which = next(source["dataset_name"] for source in sources if source["teacher"] is None)
        raise RecipeError(f"dataset_mixture: {which} names no teacher, and others do; give every entry its teacher")
    if not named and len(teachers) > 1:
        raise RecipeError(
            f"teachers: nothing says whose a prompt is; give each entry of dataset_mixture a teacher (one of "
            f"{', '.join(teachers)}), or name a teacher_column"
        )
    if named and (idle := [name for name in teachers if name not in named]):
        raise RecipeError(f"teachers: {idle[0]} has no entry of dataset_mixture and would teach nothing; leave it out")
