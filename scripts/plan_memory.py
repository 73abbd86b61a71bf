"""Whether a recipe fits on the GPUs, and what to change if it does not: `vopd plan` of a checkout."""

from vopd_recipes.command.plan import main

if __name__ == "__main__":
    main()
