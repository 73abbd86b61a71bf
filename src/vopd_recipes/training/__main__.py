"""`accelerate launch -m vopd_recipes.training RECIPE.yaml [--field value …]`, where there is no checkout."""

from vopd_recipes.training import main

if __name__ == "__main__":
    main()
