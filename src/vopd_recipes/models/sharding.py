"""Who holds which part of a parameter, and how to see all of it.

Under DDP and ZeRO-1/2 every process holds every parameter; under ZeRO-3 and FSDP2 each holds a shard.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations import deepspeed as hf_deepspeed

# DeepSpeed's `offload_param`: pinned, so that shards travel while the layer before computes.
IN_CPU_MEMORY = {"device": "cpu", "pin_memory": True}


def layout(accelerator: Accelerator) -> str:
    """`none` (one process), `ddp`, `zero1`, `zero2`, `zero3` or `fsdp2`: how parameters and states are spread."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    if kind == DistributedType.FSDP:
        return f"fsdp{accelerator.state.fsdp_plugin.fsdp_version}"
    return "none" if accelerator.num_processes == 1 else "ddp"


def shards_weights(accelerator: Accelerator) -> bool:
    """Whether no process holds the whole model."""
    return layout(accelerator) in ("zero3", "fsdp1", "fsdp2")


def is_sharded(model: nn.Module) -> bool:
    """Whether the model was loaded sharded by ZeRO-3 and cannot be called before it is prepared."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def is_cut(model: nn.Module) -> bool:
    """Whether no process holds the whole model, by ZeRO-3 or FSDP2, and every forward of it is collective."""
    return is_sharded(model) or any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def loading_teacher(offload: bool) -> Iterator[None]:
    """Under ZeRO-3 models are sharded while they load, to where the student's configuration says; a teacher that is to
    be offloaded has to be sharded into CPU memory then and there, because DeepSpeed moves no shard that exists.
    """
    if not (offload and hf_deepspeed.is_deepspeed_zero3_enabled()):
        yield
        return
    ours: Any = hf_deepspeed._hf_deepspeed_config_weak_ref()  # type: ignore[misc]  # set: it was just asked
    configuration = copy.deepcopy(ours.config)
    configuration["zero_optimization"]["offload_param"] = IN_CPU_MEMORY
    with _loading_under(configuration):
        yield


@contextmanager
def unsharded() -> Iterator[None]:
    """What transformers builds in the block is whole, under ZeRO-3 as well, which shards models while they load."""
    with _loading_under(None) if hf_deepspeed.is_deepspeed_zero3_enabled() else nullcontext():
        yield


@contextmanager
def _loading_under(configuration: dict[str, Any] | None) -> Iterator[None]:
    """Models load by another DeepSpeed configuration than the run's, or by none."""
    ours: Any = hf_deepspeed._hf_deepspeed_config_weak_ref()  # type: ignore[misc]  # set: ZeRO-3 is on
    others = None if configuration is None else hf_deepspeed.HfDeepSpeedConfig(configuration)  # asked while it lives
    if others is None:
        hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed.set_hf_deepspeed_config(ours)
        del others


@contextmanager
def gathered(*parameters: Tensor) -> Iterator[list[Tensor]]:
    """The whole of each parameter, detached, for the length of the block; sharded again after it. Collective."""
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed  # imported late: it takes seconds

        with deepspeed.zero.GatheredParameters(list(parameters)):
            yield [parameter.detach() for parameter in parameters]
    else:
        yield [_full(parameter.detach()) for parameter in parameters]


def _full(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    local, mesh = tensor.to_local(), tensor.device_mesh
    if local.device.type != mesh.device_type:  # shards that wait in CPU memory: only the mesh's devices can gather
        local = local.to(mesh.device_type)
        shape, stride = tensor.size(), tensor.stride()
        tensor = DTensor.from_local(local, mesh, tensor.placements, run_check=False, shape=shape, stride=stride)
    return tensor.full_tensor()


@contextmanager
def redirected(module: nn.Module, function: Callable[..., Any], method: str = "forward") -> Iterator[None]:
    """Call `function` in place of the module's own method; the hooks around forward, which gather and reduce, stay."""
    own = vars(module).get(method)
    setattr(module, method, function)
    try:
        yield
    finally:
        if own is None:
            delattr(module, method)
        else:
            setattr(module, method, own)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
