"""Every recipe of this repository, found by where it lies, and read whatever machine this is."""

from pathlib import Path
from typing import Any

from vopd_recipes.planner.setup import read_anywhere
from vopd_recipes.recipe import Recipe

ROOT = Path(__file__).parents[1]
NOT_FOR_TRAINING = ("accelerate_configs", "data")
RECIPES = sorted(
    str(path.relative_to(ROOT)) for path in ROOT.glob("recipes/*/*.yaml") if path.parent.name not in NOT_FOR_TRAINING
)
# Of one teacher each; recipes of several stand beside one another in folders of their own.
SEVERAL = [name for name in RECIPES if Path(name).parent.name == "tiny-two-teachers"]
BASES = [name for name in RECIPES if name.endswith("/vopd.yaml") and name not in SEVERAL]


def as_it_stands(name: str) -> Recipe:
    """Read and checked, whatever machine this is."""
    return read_anywhere(Path(name), [])[0]


def resolved(name: str) -> dict[str, Any]:
    """Every value, the machine's included."""
    recipe, texts = read_anywhere(Path(name), [])
    values = {field: value for field, value in recipe.resolved().items() if field != "use_cpu"}
    return values | {field: value for field, (value, _) in texts.items()}
