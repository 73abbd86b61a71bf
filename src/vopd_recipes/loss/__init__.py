"""The estimators: what each one is, its gradient, and the sweep that computes it.

`methods` is the table of all of them. `definition` is the mathematics over [N, V] logits, the oracle of the others;
`fused` the same from hidden states, a chunk of tokens at a time; `from_logprobs` what a server's k log-probabilities a
token allow.
"""

from typing import TYPE_CHECKING

from vopd_recipes.exports import on_demand
from vopd_recipes.loss.methods import method_of

if TYPE_CHECKING:
    from vopd_recipes.loss.definition import (
        Baseline,
        Estimator,
        TokenStats,
        baseline_value,
        importance_weight,
        reference_loss,
        value_on_support,
        variance_name,
    )
    from vopd_recipes.loss.from_logprobs import Scores, scored_loss, student_support
    from vopd_recipes.loss.fused import BLOCKS_PER_CHUNK, BUFFER_BYTES, Head, fused_loss

__getattr__ = on_demand(__name__, "definition", "fused", "from_logprobs")
