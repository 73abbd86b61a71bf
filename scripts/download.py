"""Fetch and check a published revision: `vopd download` of a checkout."""

from vopd_recipes.command.download import main

if __name__ == "__main__":
    main()
