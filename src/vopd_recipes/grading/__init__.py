"""Whether an answer is right.

`answers` reads and rewrites mathematical ones, `choices` those of multiple choice; `grader` decides, and leaves what
needs a computer-algebra system to `worker`, a process that can be killed.
"""

from vopd_recipes.grading.answers import answer_key, rewritten
from vopd_recipes.grading.boxes import extract_boxed
from vopd_recipes.grading.grader import Grade, MathGrader, grade_choice
