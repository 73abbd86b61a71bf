"""`vopd`, the one command: what to type for everything that the other rooms do. Nothing imports from here but scripts.

A subcommand is a module of this room with a `main(words)`, and a row in `COMMANDS`; it is imported when it is asked
for, so that `vopd --help` is there at once. `scripts/*.py` of a checkout are the same mains under other names.
"""

from vopd_recipes.command.main import COMMANDS, main
