"""Distil a student on its own samples: `accelerate launch scripts/run_vopd.py RECIPE.yaml [--field value …]`.

The same command, started again, resumes an interrupted run. With `--explain [PROCESSES]` it only says what it
would do.
"""

from vopd_recipes.recipe import take_cpu_share

if __name__ == "__main__":
    take_cpu_share()  # before torch is imported
    from vopd_recipes.training import main

    main()
