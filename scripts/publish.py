"""Publish what a run has saved, or an evaluation's results: `vopd publish` of a checkout."""

from vopd_recipes.command.publish import main

if __name__ == "__main__":
    main()
