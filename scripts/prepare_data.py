"""Make a training set: `vopd data` of a checkout."""

from vopd_recipes.command.data import main

if __name__ == "__main__":
    main()
