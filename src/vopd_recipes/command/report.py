"""One HTML page from any runs, readable without a network.

    vopd report RUN_DIR [RUN_DIR …] [--output report.html]

Runs whose recipes differ only in the seed are drawn as one method with a band. A run that has not finished is read at
its last complete checkpoint. Exit status: 0 written, 2 bad input.
"""

import argparse
from pathlib import Path

from vopd_recipes.files import RunError
from vopd_recipes.recipe import one_line_errors
from vopd_recipes.reporting import write_report


@one_line_errors(RunError)
def main(words: list[str] | None = None) -> None:
    """Of these words; default: the process's."""
    parser = argparse.ArgumentParser(
        prog="vopd report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of runs")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="where the page goes [report.html]")
    options = parser.parse_args(words)
    path = write_report(options.runs, options.output)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
