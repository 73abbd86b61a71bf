"""Is this machine right for a recipe? `vopd check RECIPE [--random] [--field value …]`, before a run.

For the processes of several GPUs: `accelerate launch scripts/check_machine.py RECIPE`, which is the same.
"""

import logging

from vopd_recipes import machine
from vopd_recipes.command.unlogged import unlogged


def main(words: list[str]) -> None:
    """Check, print, exit."""
    with unlogged(logging.WARNING):  # a line says what counts
        machine.main(words)
