"""Is this machine right for a recipe? `python scripts/check_machine.py RECIPE [--random] [--field value]`.

Or under `accelerate launch`. Under three minutes; `--random` needs no weights, only the models' configurations. Exit
status: 0 everything is right, 1 a red line says what is not, 2 bad input.
"""

import logging

from vopd_recipes.machine import main

if __name__ == "__main__":
    logging.disable(logging.WARNING)  # a line says what counts; the whole process's, so not in main
    main()
