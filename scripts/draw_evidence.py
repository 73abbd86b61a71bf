"""Draw the pictures of docs/evidence.md, and print its tables, from the small files of docs/evidence:
`python scripts/draw_evidence.py`.

Nothing is trained or measured: the files hold the logs of runs (`compare_estimators.py --kept`) and what
`measure_variance.py` and `measure_baselines.py` found.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vopd_recipes.evidence import (
    Run,
    compared,
    directions_table,
    draw_baselines,
    draw_directions,
    draw_report,
    errors_table,
    logit_variances_table,
    read_logs,
    students_table,
    variance_table,
    write_comparison,
)
from vopd_recipes.recipe import RecipeError, one_line_errors

DOCS = Path(__file__).parents[1] / "docs"
# A file of runs → its pictures' names.
RUNS = {
    "tiny-arithmetic.json": {"reverse-kl.png": "evidence-reverse-kl.png", "accuracy.png": "evidence-accuracy.png"},
    "smollm2-135m.json": {"reverse-kl.png": "evidence-smollm2.png"},
    "smollm2-135m-math.json": {"reverse-kl.png": "evidence-smollm2-math.png"},
}
DIRECTIONS = {
    "one layer removed": "directions-less-1.json",
    "three layers removed": "directions-less-3.json",
    "six layers removed": "directions-less-6.json",
}
BASELINES = {"built-in": "baselines-tiny.json", "SmolLM2": "baselines-smollm2.json"}


def runs_of(file: Path) -> list[Run]:
    logs = read_logs(file)
    if not logs:
        raise RecipeError(f"{file}: holds no runs; --folder names the folder of the files")
    if unknown := sorted({method for method, _ in logs} - compared().keys()):
        raise RecipeError(f"{file}: holds runs of methods that are not compared: {', '.join(unknown)}")
    return [Run(compared()[method], seed, Path(f"{method}-seed{seed}"), log) for (method, seed), log in logs.items()]


def content(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: cannot be read ({error})") from None


def draw(folder: Path, output: Path) -> list[str]:
    """Every picture; returns the tables."""
    tables = []
    output.mkdir(parents=True, exist_ok=True)
    for name, pictures in RUNS.items():
        with tempfile.TemporaryDirectory() as made:
            tables.append(write_comparison(runs_of(folder / name), Path(made)))
            for picture, kept_as in pictures.items():
                shutil.copyfile(Path(made) / picture, output / kept_as)
    variance = content(folder / "variance.json")
    draw_report(variance, output / "evidence-variance.png")
    along = {title: content(folder / name) for title, name in DIRECTIONS.items()}
    draw_directions(along, output / "evidence-directions.png")
    tables += [variance_table(variance), *map(directions_table, along.values()), students_table(along)]
    baselines = {title: content(folder / name) for title, name in BASELINES.items()}
    draw_baselines(baselines["SmolLM2"], output / "evidence-baselines.png")
    return [*tables, errors_table(baselines), logit_variances_table(baselines["SmolLM2"])]


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DOCS / "evidence", help="of the files (docs/evidence)")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder of the pictures (docs)")
    words = parser.parse_args()
    print("\n\n".join(draw(words.folder, words.output)))


if __name__ == "__main__":
    main()
