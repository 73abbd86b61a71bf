"""Recipes that come with the package: `qwen3-1.7b/vopd` is one from anywhere, a checkout or not.

`vopd_recipes/recipes` is the repository's own folder: a link in a checkout, copies in a wheel.
"""

from __future__ import annotations

from pathlib import Path

from vopd_recipes.recipe.errors import RecipeError
from vopd_recipes.recipe.text import nearest

SHIPPED = Path(__file__).parents[1] / "recipes"


def find_recipe(name: str, folder: str = "") -> Path:
    """The file of a recipe: as it is named, else one that comes with the package.

    Args:
        name: a path, or the name of a shipped one with or without `recipes/` and `.yaml`.
        folder: of the shipped ones that are meant; default: those that train.

    Raises:
        RecipeError: neither is there.
    """
    found = _find(Path(name), folder, ".yaml")
    if found is not None:
        return found
    names = [
        path.relative_to(SHIPPED / folder).with_suffix("").as_posix() for path in (SHIPPED / folder).rglob("*.yaml")
    ]
    close = nearest(name.removeprefix("recipes/").removesuffix(".yaml"), names)
    raise RecipeError(f"{name}: cannot read the recipe: no such file, and none of that name comes with vopd{close}")


def find_shipped(path: Path) -> Path:
    """A file that a recipe names, such as `recipes/deepspeed/zero2.json`: the shipped one where there is no other."""
    return _find(path, "", "") or path


def _find(path: Path, folder: str, suffix: str) -> Path | None:
    if path.is_file():
        return path
    inside = Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path
    if inside.is_absolute():
        return None
    near = [Path("recipes", folder, inside), SHIPPED / folder / inside, SHIPPED / inside]  # a checkout's, for its name
    return next((each for one in near for each in (one, one.with_name(one.name + suffix)) if each.is_file()), None)
