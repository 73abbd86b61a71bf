"""How the processes were started, and whether they found each other.

Three launches train something else than what was asked for without an error of their own: a CPU configuration that
starts one process where several were meant, FSDP on CPUs that starts processes which never talk, and DeepSpeed that
becomes plain DDP. Each is an error here, before a model is loaded. What a plain `accelerate launch` leaves unset and
DeepSpeed needs is filled in.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from transformers import TrainingArguments

from vopd_recipes.recipe.errors import RecipeError
from vopd_recipes.recipe.shipped import find_shipped

logger = logging.getLogger(__name__)

_USE_TORCHRUN = "start it with `torchrun --nproc_per_node N scripts/run_vopd.py RECIPE`"


def prepare_launch(args: TrainingArguments) -> None:
    """Before the processes meet: fill in what the launcher left out.

    Raises:
        RecipeError: a launch that cannot become what was asked for.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if args.use_cpu and by_accelerate and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        raise RecipeError(f"the launcher was asked for several processes on CPUs and started one; {_USE_TORCHRUN}")
    if args.use_cpu and is_set("ACCELERATE_USE_FSDP"):
        raise RecipeError("use_cpu: true with FSDP: its processes would train apart; use DDP or ZeRO on CPUs")
    if args.use_cpu and is_set("ACCELERATE_USE_DEEPSPEED") and not args.deepspeed:
        raise RecipeError(
            "use_cpu: true: on CPUs the recipe itself must name the DeepSpeed configuration, as deepspeed: FILE; "
            f"{_USE_TORCHRUN}"
        )
    if isinstance(args.deepspeed, str):
        args.deepspeed = str(find_shipped(Path(args.deepspeed)))
    if isinstance(args.deepspeed, str) and not Path(args.deepspeed).is_file():
        raise RecipeError(f"deepspeed: no such file: {args.deepspeed}")
    if args.deepspeed and "RANK" not in os.environ:  # one process: DeepSpeed would look for MPI
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    if args.use_cpu and args.ddp_backend is None and "RANK" in os.environ:
        args.ddp_backend = "gloo"  # without a name, processes on CPUs do not look for each other


def introduce_deepspeed(args: TrainingArguments) -> None:
    """Once the process group stands: on CPUs accelerate does not tell DeepSpeed, which would shard for one process."""
    if args.use_cpu and args.deepspeed:
        from deepspeed import comm  # imported late: it takes seconds

        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def add_up_in_float32(args: TrainingArguments) -> None:
    """Under FSDP2 each micro-batch's gradient is reduced and added to the float32 shard.

    Waiting for the last one, as the Trainer does elsewhere, would add them up in bfloat16, whole on every GPU.
    """
    if is_set("ACCELERATE_USE_FSDP"):
        batches: Any = args.accelerator_config
        batches.gradient_accumulation_kwargs = {
            **(batches.gradient_accumulation_kwargs or {}),
            "sync_each_batch": True,
        }


def check_launch(accelerator: Accelerator) -> None:
    """After the processes have met: they are as many, and of the kind, that was asked for, and save what loads.

    Raises:
        RecipeError: they are not, and would train something else.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise RecipeError(
            f"{started} processes were started but {accelerator.num_processes} found each other, so each would train "
            f"by itself; {_USE_TORCHRUN}"
        )
    compiler = accelerator.state.dynamo_plugin.backend
    if compiler != DynamoBackend.NO:
        raise RecipeError(
            f"dynamo_backend: {compiler.value.lower()} in the accelerate configuration compiles the student, which "
            "would not see the loss in place of its head; leave it out (loss_compile compiles the loss)"
        )
    deepspeed = accelerator.state.deepspeed_plugin
    if (deepspeed is not None) != (accelerator.distributed_type == DistributedType.DEEPSPEED):
        raise RecipeError(
            f"DeepSpeed was asked for, but the processes run as {accelerator.distributed_type.value}; name its "
            f"configuration in the recipe, as deepspeed: FILE, and {_USE_TORCHRUN}"
        )
    if deepspeed is not None and deepspeed.zero_stage > 0 and accelerator.mixed_precision == "bf16":
        _warn_of_bfloat16_sums(deepspeed.deepspeed_config)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        zero = deepspeed.deepspeed_config["zero_optimization"]
        if not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise RecipeError(
                "the DeepSpeed configuration lacks stage3_gather_16bit_weights_on_model_save: true, without which "
                "ZeRO-3 saves no model that others can load"
            )
    if accelerator.distributed_type == DistributedType.FSDP:
        fsdp = accelerator.state.fsdp_plugin
        if fsdp.fsdp_version != 2 or "FULL" not in str(fsdp.state_dict_type):
            raise RecipeError(
                "FSDP needs fsdp_version: 2 and fsdp_state_dict_type: FULL_STATE_DICT in the accelerate "
                "configuration, as recipes/accelerate_configs/fsdp2.yaml has them; else it saves no model that others "
                "can load"
            )


def _warn_of_bfloat16_sums(configuration: dict[str, Any]) -> None:
    if configuration.get("data_types", {}).get("grad_accum_dtype") != "fp32":
        logger.warning(
            "the DeepSpeed configuration lacks data_types: {grad_accum_dtype: fp32}: gradients of micro-batches are "
            "added up in bfloat16, where small ones round away"
        )


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_set(name: str) -> bool:
    """Whether a launcher's environment variable says yes."""
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")
