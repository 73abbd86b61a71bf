"""What a recipe says: its fields and their text, the errors in them, and how the processes were launched.

A YAML file and command-line flags (`text`) become checked dataclasses (`config`, `load`); what is wrong is one
line with file and line (`errors`), and `help` is what `--help` says of the fields. `shipped` knows the recipes that
come with the package, and `teachers` makes one recipe of several teachers as many of one. `launch` makes sure that the
processes are as many, and of the kind, that was asked for, and `threads` that each has its share of the CPU.
"""

from typing import TYPE_CHECKING

from vopd_recipes.exports import on_demand
from vopd_recipes.recipe.errors import RecipeError, one_line, one_line_errors
from vopd_recipes.recipe.hub_ids import is_hub_id
from vopd_recipes.recipe.shipped import find_recipe, find_shipped
from vopd_recipes.recipe.teachers import models_of_teachers, of_teacher
from vopd_recipes.recipe.text import check_fields, coerce, nearest, read_fields, read_flags, read_yaml
from vopd_recipes.recipe.threads import take_cpu_share

if TYPE_CHECKING:
    from vopd_recipes.recipe.config import DataConfig, ModelConfig, Recipe, VOPDConfig
    from vopd_recipes.recipe.help import fields_help
    from vopd_recipes.recipe.launch import check_launch, free_port, is_set
    from vopd_recipes.recipe.load import load_recipe

__getattr__ = on_demand(__name__, "config", "help", "launch", "load")
