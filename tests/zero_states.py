"""Under torchrun: bytes that DeepSpeed really holds on rank 0 for a model, one line of JSON per case.

    torchrun … tests/zero_states.py MODEL_FOLDER

A case is [ZeRO stage, bfloat16 or not, LoRA or not, accumulated in float32 or not]; stage 4 is FSDP2, by PyTorch
itself. Gradients are those before the update: of one micro-batch of two under ZeRO-1, which reduces them last, and of
both under ZeRO-2 and 3.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

import deepspeed
import torch
from deepspeed import comm
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer
from transformers.integrations import HfDeepSpeedConfig

from vopd_recipes.planner.architectures import Architecture, Lora, build

CASES = [
    (1, True, True, False), (1, True, True, True), (2, False, False, True), (2, True, True, False),
    (2, True, True, True), (3, False, True, True), (3, True, False, True), (3, True, True, False),
    (3, True, True, True), (4, False, False, True), (4, False, True, True),
]  # fmt: skip


def total(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of distinct storages."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def engine_of(architecture: Architecture, stage: int, half: bool, in_float32: bool) -> tuple[Any, Any, Any]:
    """Model, engine and ZeRO optimiser, with the Trainer's two parameter groups."""
    config = {
        "data_types": {"grad_accum_dtype": "fp32" if in_float32 else None},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "bf16": {"enabled": half},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": architecture.config.hidden_size**2,
            "stage3_param_persistence_threshold": 10 * architecture.config.hidden_size,
        },
    }
    loading = HfDeepSpeedConfig(config)  # as in training, a ZeRO-3 model is sharded while it is built
    model: Any = build(architecture, architecture.config)
    del loading
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [[parameter for name, parameter in named if (name in decayed) == wanted] for wanted in (True, False)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups if group], fused=True)
    engine, zero, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return model, engine, zero


def measure(architecture: Architecture, stage: int, half: bool, in_float32: bool) -> dict[str, int]:
    """Bytes of weights, gradients, and optimiser state with the float32 copy, after a step."""
    model, engine, zero = engine_of(architecture, stage, half, in_float32)
    apart = stage == 1 and half and in_float32  # another optimiser of DeepSpeed's, that adds them up in a copy
    tokens = torch.arange(12)[None]
    for _ in range(2):
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        full = total(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
        if stage == 1 and full:
            gradients = full + (total(zero.fp32_groups_gradients_flat) if apart else 0)
        engine.step() if not engine.is_gradient_accumulation_boundary() else None
    if stage == 2:  # views of whole gradients: up to one parameter more is kept alive at the cut
        gradients = sum(g.nbytes for group in zero.averaged_gradients.values() for g in group or [])
    if stage == 3:
        gradients = zero.grad_partitions_flat_buffer.nbytes
    engine.step()
    weights = list(model.parameters())
    if stage == 3:
        weights = [p.ds_tensor for p in weights] + [p for p in weights if p.ds_persist]
    names = {3: "fp32_partitioned_groups_flat", 2: "single_partition_of_fp32_groups"}
    masters = getattr(zero, "fp32_groups_flat_partition" if apart else names[max(stage, 2)])
    states = [value for state in zero.optimizer.state.values() for value in state.values()]
    return {"weights": total(weights), "gradients": gradients, "optimizer": total([*states, *masters])}


def measure_fsdp2(architecture: Architecture) -> dict[str, int]:
    """The same of the rows that PyTorch's fully_shard leaves on this process."""
    model: Any = build(architecture, architecture.config)
    for layer in model.get_base_model().model.layers if architecture.lora else model.model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (comm.get_world_size(),)))
    fully_shard(model, mesh=init_device_mesh("cpu", (comm.get_world_size(),)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    tokens = torch.arange(12)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(parameter.to_local().nbytes for parameter in model.parameters()),
        "gradients": sum(parameter.grad.to_local().nbytes for parameter in trained),
        "optimizer": sum((state.to_local() if hasattr(state, "to_local") else state).nbytes for state in states),
    }


def main(folder: str) -> None:
    comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    for stage, half, lora, in_float32 in CASES:
        architecture = Architecture(folder, None, "float32", Lora(4, 8, "all-linear") if lora else None)
        measured = measure_fsdp2(architecture) if stage == 4 else measure(architecture, stage, half, in_float32)
        if comm.get_rank() == 0:
            print(json.dumps({"case": [stage, half, lora, in_float32], **measured}))


if __name__ == "__main__":
    main(sys.argv[1])
