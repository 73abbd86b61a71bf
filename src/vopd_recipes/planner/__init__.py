"""Does a recipe fit, and what would it do? Asked before a GPU is rented: no weights are loaded.

`setup` (recipe and launch) → `architectures` (every parameter of a model, from its configuration alone) → `states`
(what is there whatever the batch) and `activations` (what a forward and backward pass holds, counted on fake tensors)
→ `memory` (each phase of a step on the fullest GPU) → `fitting` (the table, and the smallest change that fits).
`explain` tells a run before it starts.
"""

from vopd_recipes.planner.activations import LiveBytes
from vopd_recipes.planner.architectures import Architecture, parameters_of
from vopd_recipes.planner.explain import (
    FLAG,
    PromptCount,
    count_prompts,
    explain,
    optimizer_steps,
    take_flag,
    unlaunched,
)
from vopd_recipes.planner.fitting import smallest_change, table, verdict
from vopd_recipes.planner.memory import CONTEXT_BYTES, GB, VLLM_ASLEEP_BYTES, Plan, plan
from vopd_recipes.planner.setup import read_anywhere, read_setup, without_flags
from vopd_recipes.planner.states import Setup, Sharding
