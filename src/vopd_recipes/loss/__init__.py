"""The estimators: what each one is, its gradient, and the sweep that computes it.

`methods` is the table of all of them and `estimator` what a recipe says of one. `definition` is the mathematics over
[N, V] logits, the oracle of the others; `sweep` goes over hidden states a chunk at a time, for `fused`, which has both
distributions, and for `from_logprobs`, which has a server's k log-probabilities a token.
"""

from typing import TYPE_CHECKING

from vopd_recipes.exports import on_demand
from vopd_recipes.loss.estimator import Estimator, Support
from vopd_recipes.loss.methods import (
    METHODS,
    Method,
    Needs,
    baselines,
    default_baseline,
    divergences,
    method,
    method_of,
)

if TYPE_CHECKING:
    from vopd_recipes.loss.definition import (
        TokenStats,
        baseline_value,
        importance_weight,
        reference_loss,
        value_on_support,
    )
    from vopd_recipes.loss.from_logprobs import Scores, logprobs_loss, student_support
    from vopd_recipes.loss.fused import BLOCKS_PER_CHUNK, fused_loss
    from vopd_recipes.loss.head import Head
    from vopd_recipes.loss.sweep import BUFFER_BYTES

__getattr__ = on_demand(__name__, "definition", "fused", "from_logprobs", "sweep")
