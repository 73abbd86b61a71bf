"""The page: who trained whom and how, what came of it, the curves, and what the student wrote.

Everything is in the one file: style sheet, pictures, and a small script that only makes hovering nicer. A policy in
its head forbids the page to load anything and to run any script but this one, so that a completion could do nothing
even if its escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from vopd_recipes.files import RunError, check_writable, write_text
from vopd_recipes.recipe import RecipeError
from vopd_recipes.reporting.completions import COMPLETIONS, PROMPT_CHARACTERS, PROMPTS, TOKENS, completions
from vopd_recipes.reporting.escaping import escaped
from vopd_recipes.reporting.methods import methods, student_of, teacher_of
from vopd_recipes.reporting.run_metrics import curves, results, times, variance
from vopd_recipes.reporting.runs import Group, group_runs, read_runs


def write_report(folders: Sequence[Path], path: Path, *, live: bool = False, refresh: int = 0) -> Path:
    """Write the page of some runs, whole or not at all; `live` and `refresh` as of `report_page`.

    Raises:
        RunError: a folder that is no run, or a path that is no file's.
    """
    check_output(path)
    page = report_page(folders, live=live, refresh=refresh)
    write_text(path, page)
    return path


def check_output(path: Path) -> None:
    """Whether a page can be written there.

    Raises:
        RunError: it cannot.
    """
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name the file to write")
    try:
        check_writable(path.parent, f"--output: {path}")
    except RecipeError as error:
        raise RunError(str(error)) from None


def report_page(folders: Sequence[Path], *, live: bool = False, refresh: int = 0) -> str:
    """The page of some runs' folders.

    Args:
        folders: of the runs.
        live: runs that have not finished are read at their last log lines.
        refresh: seconds after which a browser loads the page anew; 0: never.

    Raises:
        RunError: see `read_run`.
    """
    groups = group_runs(read_runs(folders, live))
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    title = _title(groups)
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    sections = [_header(groups, title, refresh), methods(groups), results(groups), curves(groups), variance(groups)]
    sections += [times(groups), completions(groups), _footer()]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"{again}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(groups: Sequence[Group]) -> str:
    labels = [group.label for group in groups]
    if len(labels) > 3:
        return f"{len(labels)} methods, {sum(len(group.runs) for group in groups)} runs"
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _header(groups: Sequence[Group], title: str, refresh: int) -> str:
    pairs = dict.fromkeys((student_of(group), teacher_of(group)) for group in groups)
    following = f" · live, anew every {refresh} s" if refresh else ""
    steps = max(run.step for group in groups for run in group.runs)
    told = "; ".join(
        f"<b>{escaped(student)}</b> learns from <b>{escaped(teacher)}</b>" for student, teacher in list(pairs)[:3]
    )
    return (
        f"<header><p class=kicker>On-policy distillation report{following}</p><h1>{escaped(title)}</h1>"
        f"<p class=lead>{told}, {steps:,} steps on its own samples.</p></header>"
    )


def _footer() -> str:
    return (
        f"<footer>At most {PROMPTS} prompts are shown, those that most runs and steps share, with {COMPLETIONS} "
        f"completions each or one of every method, {TOKENS} tokens of a completion and {PROMPT_CHARACTERS:,} "
        "characters of a prompt. Of seeds the first is quoted. This page loads nothing.</footer>"
    )
