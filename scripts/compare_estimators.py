"""Train every estimator with several seeds and compare: `python scripts/compare_estimators.py RECIPE [--field value]`.

The same command, started again, resumes; with everything trained it only compares. --kept names a small file of the
runs' logs: runs that it holds are not trained again, those that end are added to it, and tables and pictures are made
from it alone where nothing is missing. Fields of the recipe can be overridden as in scripts/run_vopd.py.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from vopd_recipes.evidence import (
    Run,
    add_logs,
    check_runs,
    compared,
    execute,
    locked,
    plan,
    read_logs,
    write_comparison,
)
from vopd_recipes.files import check_writable
from vopd_recipes.recipe import RecipeError, nearest, one_line_errors


def planned(words: argparse.Namespace, output: Path) -> list[Run]:
    if words.seeds < 2 or words.jobs < 1:
        raise RecipeError("--seeds must be at least 2, --jobs at least 1")
    for name in words.methods.split(","):
        if name not in compared():
            raise RecipeError(f"--methods: no method '{name}'{nearest(name, compared())}")
    logs = read_logs(words.kept) if words.kept else {}
    return plan(output, [compared()[name] for name in words.methods.split(",")], range(words.seeds), logs)


@one_line_errors()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path, help="default: data/evidence/ and the name of the recipe's folder")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="logs of finished runs: read, and added to")
    parser.add_argument("--methods", default=",".join(compared()), help="separated by commas (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 (%(default)s)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time: cores")
    parser.add_argument("--target", type=float, help="held-out reverse KL to reach; default: where OPD ends")
    words, flags = parser.parse_known_args()
    output = words.output or Path("data/evidence") / words.recipe.resolve().parent.name
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the runs end with this command, however it is ended
    try:
        runs = planned(words, output)
        check_runs(runs, words.recipe, flags)
        check_writable(output, "--output")
        if words.kept:
            check_writable(words.kept.parent, "--kept")
        with locked(output) as lock:
            try:
                failed = execute(runs, words.recipe, flags, words.jobs, lock)
            finally:
                if words.kept:
                    done = {(run.method.name, run.seed): run.to_keep() for run in runs if run.done}
                    add_logs(words.kept, done)
            for run, reason in failed.items():
                print(f"error: {run.folder.name}: {reason} (log: {run.log})", file=sys.stderr)
            print(write_comparison([run for run in runs if run.done], output, words.target))
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
