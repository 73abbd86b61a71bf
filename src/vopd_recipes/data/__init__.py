"""Training sets from their sources: `python scripts/prepare_data.py recipes/data/<name>.yaml`.

`recipe` (what to make) → `origin` (which bytes that is) → `sources`, `json_rows` (rows of a file or of the Hub) →
`rows`, `gold` (prompt and answer, or why not) → `answers`, `language`, `lengths`, `contamination` with `instructions`,
`duplicates` (which rows stay) → `prepare` (the files) → `card`, `push`. Both overlap filters stand on `words`, and
these on `typesetting`. A training run reads the result by `vopd_recipes.prompts`.
"""
