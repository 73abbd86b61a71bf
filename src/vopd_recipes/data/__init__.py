"""Training sets from their sources: `python scripts/prepare_data.py recipes/data/<name>.yaml`.

`recipe` (what to make) → `sources` (rows of a file or of the Hub) → `rows` (prompt and answer, or why not) →
`answers`, `language`, `lengths`, `contamination`, `duplicates` (which rows stay) → `prepare` (the files) → `card`,
`push`. Both overlap filters stand on `words`. A training run reads the result by `vopd_recipes.prompts`.
"""
