"""Student and teacher as plain causal language models: loading, heads, attention, sharding, weights.

`loading` (or `head_only`, of a teacher behind a server) → `tokens` (the same ones, and where a text ends) → `checks`
(understood, something to teach) → `architecture` (backbone and head apart, as the loss needs them). `attention` is
what packed rows are computed with; `sharding` says who holds which part of a parameter, `weights` makes them whole.
"""

from vopd_recipes.models.architecture import (
    causal_lm_of,
    completion_states,
    head_module,
    head_of,
    hidden_states,
    runs_each_alone,
    scale_logits,
    vocabulary_of,
)
from vopd_recipes.models.attention import PACKED_SDPA, packed_arguments
from vopd_recipes.models.checks import check_models
from vopd_recipes.models.head_only import load_teacher_head
from vopd_recipes.models.loading import (
    base_of,
    cast_outside_autocast,
    default_attention,
    is_own_base,
    load_student,
    load_teacher,
    load_tokenizer,
    noise_of,
)
from vopd_recipes.models.sharding import (
    IN_CPU_MEMORY,
    evaluating,
    gathered,
    is_sharded,
    layout,
    loading_teacher,
    redirected,
    shards_weights,
    unsharded,
)
from vopd_recipes.models.tokens import (
    check_end_tokens,
    check_prompts,
    check_tokenizers,
    end_of_sequence_ids,
    published_end_ids,
    unshared_end,
)
from vopd_recipes.models.untrained import untrained_student, untrained_teacher
from vopd_recipes.models.weights import FullCopy, checkpoint_weights, full_weights, load_weights
