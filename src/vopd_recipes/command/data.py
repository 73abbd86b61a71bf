"""Make a training set: `vopd data dapo-math-17k [--push org/name] [--field value]`."""

import argparse
import logging
import sys
from pathlib import Path

from vopd_recipes.data import check_access, load_data_recipe, prepare, prepared, push
from vopd_recipes.hub import hub_client
from vopd_recipes.recipe import RecipeError, find_recipe, one_line_errors


@one_line_errors()
def main(words: list[str] | None = None) -> None:
    """Of these words; default: the process's."""
    parser = argparse.ArgumentParser(prog="vopd data", description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", help="a data recipe; --field value changes a field of it")
    parser.add_argument("--push", metavar="org/name", help="upload as a private data set")
    options, overrides = parser.parse_known_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    api = hub_client(300.0)
    recipe = load_data_recipe(find_recipe(options.recipe, "data"), overrides)
    if options.push:
        check_access(api, options.push)
    summary = prepared(recipe)
    if summary is not None:
        print(f"{recipe.output_dir} was made by this recipe before; delete it to make it anew", file=sys.stderr)
    elif Path(recipe.output_dir).exists():
        raise RecipeError(
            f"output_dir: {recipe.output_dir} is there already, from another recipe or other input; "
            "delete it or name another"
        )
    summary = summary or prepare(recipe)
    removed = ", ".join(f"{count:,} {name}" for name, count in summary["rows_removed"].items() if count)
    print(f"{recipe.output_dir}: {summary['rows_written']:,} of {summary['rows_read']:,} rows", end="")
    print(f"; left out: {removed}" if removed else "")
    for name, known in summary["evaluation_sets"].items():
        if "not_checked" in known:
            print(f"not compared with {name}: {known['not_checked']}", file=sys.stderr)
    if options.push:
        print(push(api, Path(recipe.output_dir), options.push))
