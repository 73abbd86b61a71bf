"""What came of some runs, a line each and a picture of all: `python scripts/summarize.py RUN_DIR [RUN_DIR …]`."""

import argparse
import json
import sys
from pathlib import Path

from vopd_recipes.files import RunError, compare_runs, plot_comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of finished runs")
    parser.add_argument("--pair", type=Path, help="pair.json of the built-in pair, for the teacher's accuracy")
    parser.add_argument("--picture", type=Path, help="where the comparison goes (PNG)")
    words = parser.parse_args()
    missing = [run for run in words.runs if not (run / "trainer_state.json").is_file()]
    if missing:
        sys.exit(f"error: {missing[0]} holds no finished run (no trainer_state.json)")
    if words.pair:
        print(f"teacher's held-out accuracy: {json.loads(words.pair.read_text())['teacher']['accuracy']:.1%}\n")
    try:
        print(compare_runs(words.runs))
    except RunError as error:
        sys.exit(f"error: {error}")
    if words.picture:
        print(f"\npicture: {plot_comparison(words.runs, words.picture)}")


if __name__ == "__main__":
    main()
