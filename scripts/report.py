"""One HTML page from any runs: `vopd report` of a checkout."""

from vopd_recipes.command.report import main

if __name__ == "__main__":
    main()
