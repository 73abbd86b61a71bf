"""One HTML page from any runs, readable without a network.

    vopd report RUN_DIR [RUN_DIR …] [--output report.html] [--watch [--every SECONDS]]

Runs whose recipes differ only in the seed are drawn as one method with a band. A run that has not finished is read at
its last complete checkpoint; with --watch at its last log line, again and again, until it has. Exit status: 0 written,
2 bad input, 130 Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

from vopd_recipes.files import RunError
from vopd_recipes.recipe import one_line_errors
from vopd_recipes.reporting import watch_report, write_report


@one_line_errors(RunError)
def main(words: list[str] | None = None) -> None:
    """Of these words; default: the process's."""
    parser = argparse.ArgumentParser(
        prog="vopd report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of runs")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="where the page goes [report.html]")
    parser.add_argument("--watch", action="store_true", help="write it anew while the runs train")
    parser.add_argument("--every", type=int, default=10, metavar="SECONDS", help="how often --watch looks [10]")
    options = parser.parse_args(words)
    if options.every < 1:
        parser.error(f"--every: {options.every} is no number of seconds; at least 1")
    path = options.output
    if options.watch:
        try:
            watch_report(options.runs, path, options.every, say=lambda line: print(line, flush=True))
        except KeyboardInterrupt:
            sys.exit(130)
    else:
        write_report(options.runs, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
