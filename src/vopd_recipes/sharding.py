"""Who holds which part of a parameter, and how to see all of it.

Under DDP and ZeRO-1/2 every process holds every parameter; under ZeRO-3 and FSDP2 each holds a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


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


def is_sliced(model: nn.Module) -> bool:
    """Whether the model was loaded in ZeRO-3 slices and cannot be called before it is prepared."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def gathered(*parameters: Tensor) -> Iterator[list[Tensor]]:
    """The whole of each parameter, detached, for the length of the block; sharded again after it. Collective."""
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed  # imported late: it takes seconds

        with deepspeed.zero.GatheredParameters(list(parameters)):
            yield [parameter.detach() for parameter in parameters]
    else:
        yield [_whole(parameter.detach()) for parameter in parameters]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def redirected(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Call `forward` in place of the module's own; the hooks around it, which gather and reduce, stay."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
