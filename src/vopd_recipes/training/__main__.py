"""`accelerate launch -m vopd_recipes.training RECIPE.yaml [--field value …]`, where there is no checkout."""

from vopd_recipes.recipe import take_cpu_share
from vopd_recipes.training import main

if __name__ == "__main__":
    take_cpu_share()
    main()
