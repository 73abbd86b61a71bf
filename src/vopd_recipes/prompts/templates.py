r"""What a template says of a row: `{column}` stands for that column's value, and other braces for themselves."""

from __future__ import annotations

import re
from typing import Any

from vopd_recipes.recipe import RecipeError, nearest

# Braces that LaTeX means: \boxed{answer}, \frac{a}{b}, x^{n}. A \n that YAML left as it stands is no command of its.
_LATEX = re.compile(r"\\(?![ntr]\{)[a-zA-Z]+\*?(?:\[[^\]]*\])?(?:\{[^{}]*\})+|[\^_]\{[^{}]*\}")
# What may be a column, of whatever name: {my col}, {m.a}; LaTeX's braces come first, and are none.
_COLUMN = re.compile(rf"{_LATEX.pattern}|\{{([^{{}}]+)\}}")
# Jinja's form of a column; behind a LaTeX command, \text{{column}}, the outer braces are LaTeX's.
_JINJA = re.compile(r"(?<![\w\]}^*])\{\{\s*([^\W\d]\w*)\s*\}\}")


def fill_template(template: str, row: dict[str, Any]) -> str:
    r"""Replace each {column} that is a column; other braces stay, since templates say \boxed{}.

    LaTeX's stay whatever is in them: \boxed{answer} would show the student the answer. \boxed{{answer}} means it.
    """
    return _COLUMN.sub(lambda match: str(row[match[1]]) if match[1] in row else match[0], template)


def check_template(field: str, source: dict[str, Any], columns: list[str]) -> None:
    """Each {name} of a template is a column, unless LaTeX means its braces, and what becomes a prompt has one."""
    own = ["prompt"] if field == "prompt_template" or not source["answer_column"] else ["prompt", "answer"]
    for name in re.findall(r"\{([^\W\d]\w*)\}", _LATEX.sub("", source[field] or "")):
        if name not in (*columns, *own):
            raise RecipeError(
                f"{field}: {{{name}}} is no column of {source['dataset_name']}{nearest(name, columns)}; it "
                f"has {', '.join(columns)}; braces that are to stay as they are have spaces inside: {{ {name} }}"
            )
    if source[field] and field != "teacher_system_prompt":
        _check_names_a_column(field, source[field], [*columns, *own])


def _check_names_a_column(field: str, template: str, known: list[str]) -> None:
    if any(name in known for name in _COLUMN.findall(_JINJA.sub("", template))):
        return
    if jinja := _JINJA.search(template):
        raise RecipeError(f"{field}: {jinja[0]} is no column; write {{{jinja[1]}}}, in single braces without spaces")
    raise RecipeError(
        f"{field}: names no {{column}}, so that every prompt would be the same; write {{prompt}} where it belongs"
    )


def filled(field: str, source: dict[str, Any], row: dict[str, Any], index: int) -> str:
    template = source[field]
    if not template:
        return row["prompt"]
    for name in _COLUMN.findall(template):
        if name in row and is_null(row[name]):
            what = "holds a null" if isinstance(row[name], (list, dict)) else "is null"
            raise RecipeError(
                f"{field}: column '{name}' of {source['dataset_name']}, row {index}, {what}, and {{{name}}} "
                "needs its text; leave such rows out of the data set"
            )
    return fill_template(template, row)


def is_null(value: Any) -> bool:
    """Also NaN, which is what pandas writes for a number that is not there, and a list or struct with such a hole."""
    if isinstance(value, (list, dict)):
        return any(is_null(item) for item in (value.values() if isinstance(value, dict) else value))
    return value is None or value != value
