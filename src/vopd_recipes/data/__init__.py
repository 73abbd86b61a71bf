"""Training sets from their sources: `python scripts/prepare_data.py recipes/data/<name>.yaml`.

`recipe` (what to make) → `origin` (which bytes that is) → `sources`, `json_rows` (rows of a file or of the Hub) →
`rows`, `gold` (prompt and answer, or why not) → `answers`, `language`, `lengths`, `contamination` with `instructions`,
`duplicates` (which rows stay) → `preparation` (the files) → `card`, `push`. Both overlap filters stand on `words`, and
these on `typesetting`. A training run reads the result by `vopd_recipes.prompts`; the evaluation asks the test part of
`sciknoweval`'s split.
"""

from vopd_recipes.data import sciknoweval
from vopd_recipes.data.origin import ask_only_the_cache, hub_asked_once
from vopd_recipes.data.preparation import prepare, prepared
from vopd_recipes.data.push import check_access, push
from vopd_recipes.data.recipe import DataRecipe, EvaluationSet, load_data_recipe
