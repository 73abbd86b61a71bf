"""The table of recipes/README.md, from what each recipe and its pair's page say: `python scripts/index_recipes.py`.

A pair's README names its files, the GPUs that fit, the paper's seconds a step and what was run here (columns `hours`
and `ours`, where it has them). The index repeats that, the recipes' own values and the paper's numbers, and is nowhere
written by hand. Pairs keep the order in which they stand there; a new one comes last.
"""

import os
import re
from pathlib import Path

from vopd_recipes.loss import method_of
from vopd_recipes.paper import published_columns
from vopd_recipes.planner import read_anywhere
from vopd_recipes.recipe import models_of_teachers

ROOT = Path(__file__).resolve().parent.parent
INDEX = Path("recipes/README.md")
STEPS = 220  # of the paper's runs: some 14,000 prompts, 64 a step
HEAD = """\
| recipe | student | teacher | method | data | hardware | hours | published average | ours |
|---|---|---|---|---|---|--:|--:|---|
"""
# What our own scripts make has a folder for a name.
WORDS = {
    "data/tiny-arithmetic/student": "0.27M Qwen3, made on the spot",
    "data/tiny-arithmetic/teacher": "0.62M Qwen3, made on the spot",
    "data/tiny-two-teachers/student": "0.27M Qwen3, made on the spot",
    "data/tiny-two-teachers/teacher-sums": "0.62M Qwen3 of sums",
    "data/tiny-two-teachers/teacher-differences": "0.62M Qwen3 of differences",
    "data/smollm2-135m-pruned": "SmolLM2-135M-Instruct less 3 of 30 layers",
    "data/tiny-arithmetic/prompts": "tiny arithmetic",
    "data/word-problems": "word problems",
    "data/dapo-math-17k": "DAPO-Math-17K",
    "data/sciknoweval-chemistry": "SciKnowEval-Chemistry",
}


def with_table(index: str) -> str:
    """The page with its table written anew."""
    before, table, rest = re.split(rf"{re.escape(HEAD)}((?:\|.*\n)*)", index)
    written = {path.parent.name for path in Path("recipes").glob("*/vopd.yaml")}
    pairs = dict.fromkeys([*re.findall(r"^\| \[([^/\]]+)/", table, re.MULTILINE), *sorted(written)])
    return before + HEAD + "".join(row for pair in pairs if pair in written for row in rows_of(pair)) + rest


def rows_of(pair: str) -> list[str]:
    """A row for each file that the pair's page lists, in its order."""
    page = (Path("recipes") / pair / "README.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    columns = next(line for line in lines if line[0] == "recipe" and line[1] == "method")
    rows = []
    for line in lines:
        if link := re.fullmatch(r"\[([\w.]+\.yaml)\]\(\1\)", line[0]):
            rows.append(row_of(f"{pair}/{link[1]}", page, dict(zip(columns, line))))
    return rows


def row_of(short: str, page: str, said: dict[str, str]) -> str:
    """A recipe's row, from its values, its pair's page, and what that says of it alone."""
    recipe, texts = read_anywhere(Path("recipes") / short, [])
    values = recipe.resolved() | {name: value for name, (value, _) in texts.items()}
    columns = published_columns("ours", values)
    published = next((numbers for heading, numbers in columns.items() if heading != "paper, before"), {})
    taught = models_of_teachers(values).values()
    read = [str(source["dataset_name"]) for source in recipe.data.sources()]
    student, teacher, data = (
        ", ".join(WORDS.get(name, name.rpartition("/")[2]) for name in names)
        for names in ([values["model_name_or_path"]], taught, read)
    )
    method = method_of(values).title
    label = Path(short).name if re.search("_(from|on)_", short) else "vopd.yaml and its variants"
    hardware = re.search(rf"^\| {re.escape(label)} \| ([^|]+) \| fits", page, re.MULTILINE)
    cells = [
        f"[{short}]({short})", student, teacher, method, data, hardware[1] if hardware else "2 CPU cores",
        hours_of(method, page, said) or ("2–6 (paper)" if published else "") if "_on_" not in short else "",
        published.get("average") or " / ".join(published.values()),
        said.get("ours", "not yet run").replace("](../../", "](../"),  # from one folder further up
    ]  # fmt: skip
    return re.sub(" {2,}", " ", f"| {' | '.join(cells)} |\n")


def hours_of(method: str, page: str, said: dict[str, str]) -> str:
    """Ours, or the paper's by its seconds a step."""
    if said.get("hours"):
        return f"{said['hours']} (ours)"
    seconds = re.search(rf"in seconds a step on one H200,\n(?:.*, )?{re.escape(method)} ([\d.]+)[,;]", page)
    return f"{float(seconds[1]) * STEPS / 3600:.1f} (paper)" if seconds else ""


def main() -> None:
    os.chdir(Path(__file__).resolve().parent.parent)
    INDEX.write_text(with_table(INDEX.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
