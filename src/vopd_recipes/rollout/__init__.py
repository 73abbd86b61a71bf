"""The student samples its own completions.

`engine` is all that the trainer knows of a sampler; `transformers_engine` and `vllm_engine` are the two there are, and
`build` takes the one that the recipe names. `vllm_start` starts vLLM, for evaluation too;
`shared_process` and `shared_memory` keep apart what it would share with training and with other engines.
"""

from vopd_recipes.rollout.build import build_rollout
from vopd_recipes.rollout.engine import Completion, RolloutEngine, RolloutFailed, Sampling, rollout_seed
from vopd_recipes.rollout.transformers_engine import TransformersRollout, draw
from vopd_recipes.rollout.vllm_engine import VLLMRollout
from vopd_recipes.rollout.vllm_start import start_vllm
