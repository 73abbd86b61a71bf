"""What the README claims about the estimators, measured on real models.

On one frozen student: `projection`, `gradients` (every estimator's gradient on the same tokens) → `variance` (spread
and bias, in one pass) → `measurement` → `variance_report`; `directions` → `directions_report` (the same along random
directions, on a large model); `baselines` → `baselines_report` (how far the top-k baseline is off, and every method's
variance with respect to the logits). Over whole runs: `outcome` (what is compared) → `execution` (trains what is
missing) → `kept` (the logs, small) → `intervals`, `outcome_plots`, `outcome_report`.
"""

from vopd_recipes.evidence.baselines import measure_baselines
from vopd_recipes.evidence.baselines_report import draw_baselines, errors_table, logit_variances_table, write_baselines
from vopd_recipes.evidence.directions import measure_directions
from vopd_recipes.evidence.directions_report import (
    directions_table,
    draw_directions,
    students_table,
    write_directions,
)
from vopd_recipes.evidence.execution import execute, locked
from vopd_recipes.evidence.gradients import REDRAWS
from vopd_recipes.evidence.kept import add_logs, read_logs
from vopd_recipes.evidence.measurement import measure_variance
from vopd_recipes.evidence.outcome import Run, check_runs, compared, plan
from vopd_recipes.evidence.outcome_report import write_comparison
from vopd_recipes.evidence.variance_report import draw_report, variance_table, write_variance
