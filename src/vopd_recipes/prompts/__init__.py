"""Data sets become tokenised prompts, with their answers where they have one.

`sources` reads and checks every row before a model is loaded, `templates` fills them in, `teachers` says whose a
prompt is and what a privileged teacher reads in its place, `tokens` makes token ids of them.
"""

from vopd_recipes.prompts.sources import content_hashes, read_rows
from vopd_recipes.prompts.templates import fill_template
from vopd_recipes.prompts.tokens import Prompts, build_prompts, encode_text, read_by
