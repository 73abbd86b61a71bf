"""Fetch and check a published revision: `vopd download org/name [--revision step-00000100 | --list]`."""

import argparse
from pathlib import Path

from vopd_recipes.hub import download, hub_client, list_revisions
from vopd_recipes.recipe import one_line_errors


@one_line_errors()
def main(words: list[str] | None = None) -> None:
    """Of these words; default: the process's."""
    parser = argparse.ArgumentParser(prog="vopd download", description=__doc__)
    parser.add_argument("repo_id", help="org/name")
    parser.add_argument("--revision", default="main", help="branch, tag or commit [main]")
    parser.add_argument("--list", action="store_true", help="print every revision instead")
    parser.add_argument("--to", type=Path, help="folder; default: the cache that from_pretrained reads")
    options = parser.parse_args(words)
    api = hub_client(60.0)
    if options.list:
        for revision in list_revisions(api, options.repo_id):
            state = f"not complete: no {revision.missing[0]}" if revision.missing else "complete"
            print(f"{revision.name:24}{revision.commit[:10]}  {revision.size / 1e6:10.1f} MB  {state}")
    else:
        print(download(api, options.repo_id, options.revision, options.to))
