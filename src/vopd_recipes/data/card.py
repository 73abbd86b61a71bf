"""The data card: a README.md made from the summary of a training set, and from nothing else."""

from __future__ import annotations

from typing import Any

import yaml

from vopd_recipes.data.origin import Origin

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_WHAT = {
    "malformed": "a column is missing, null, of another type, empty or broken Unicode",
    "unverifiable": "no answer that grading can compare",
    "language": "another language than English, by script and function words",
    "overlong": "longer than max_prompt_length",
    "contaminated": "stands in an evaluation set",
    "duplicate": "the same text as an earlier row, but for spacing",
    "near_duplicate": "nearly the same text as an earlier row, with the same numbers and answer",
}


def data_card(summary: dict[str, Any]) -> str:
    """The card's text, metadata included.

    Args:
        summary: as `prepare` returns it.
    """
    metadata = yaml.safe_dump(_metadata(summary), sort_keys=False)
    recipe, read, written = summary["recipe"], summary["rows_read"], summary["rows_written"]
    part = f", {recipe['domain']}, level {recipe['level']}: the training part" if recipe["domain"] else ""
    sections = [
        f"---\n{metadata}---\n",
        f"# {recipe['dataset_name']}, prepared for on-policy distillation\n",
        f"{written:,} of {read:,} rows of {recipe['dataset_name']}{part}. The terms of the source apply.\n",
        f"Read at {_version(summary['source'])}.\n",
        "Columns: `prompt`, without a template, and `answer`, " + _answers(recipe["answer_format"]) + ".\n",
        "## Rows left out\n",
        *_removed(summary),
        "## Evaluation sets\n",
        *_evaluation_sets(summary),
        "## Recipe\n",
        f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110)}```\n",
        "`summary.json` has every count and the files' SHA-256, `removed.jsonl` one line for each row left out.\n",
    ]
    return "\n".join(sections)


def _metadata(summary: dict[str, Any]) -> dict[str, Any]:
    written = summary["rows_written"]
    size = next((name for limit, name in _SIZES if written < limit), "n>1M")
    return {
        "pretty_name": f"{summary['recipe']['dataset_name']}, prepared",
        **({"language": ["en"]} if summary["recipe"]["language"] == "english" else {}),
        "task_categories": ["text-generation"],
        "tags": ["vopd", "on-policy-distillation"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train.parquet"}]}],
    }


def _answers(answer_format: str) -> str:
    return "a choice's letter" if answer_format == "choice" else "LaTeX"


def _removed(summary: dict[str, Any]) -> list[str]:
    lines = ["| filter | rows | what |", "|---|--:|---|"]
    lines += [f"| {name} | {count:,} | {_WHAT[name]} |" for name, count in summary["rows_removed"].items()]
    if kept := summary["unverifiable_kept"]:
        lines.append(f"\n{kept:,} rows without an answer that grading can compare passed that filter: see the recipe.")
    if known := summary["duplicates_with_another_answer"]:
        lines.append(f"\n{known:,} of the duplicates have another answer than the row that stayed.")
    return [*lines, ""]


def _evaluation_sets(summary: dict[str, Any]) -> list[str]:
    recipe = summary["recipe"]
    if not summary["evaluation_sets"]:
        return ["Compared with none.\n"]
    lines = [
        f"A prompt is left out where it has {recipe['contamination_overlap']:.0%} of the "
        f"{recipe['contamination_ngram']}-grams (of words) of a question.\n",
        "| set | questions | rows left out | read at |",
        "|---|--:|--:|---|",
    ]
    for name, known in summary["evaluation_sets"].items():
        hits = f"not checked: {known['not_checked']}" if "not_checked" in known else f"{known['hits']:,}"
        lines.append(f"| {name} | {known['questions']:,} | {hits} | {_version(known.get('source', {}))} |")
    return [*lines, ""]


def _version(origin: Origin) -> str:
    if "revision" in origin:
        return f"commit {origin['revision']}"
    return f"SHA-256 {origin['sha256']}" if "sha256" in origin else "a version that is not known"
