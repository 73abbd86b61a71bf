"""What the teacher says about a window of completions.

The trainer asks for `views`: one call per micro-batch, made when the micro-batch is trained on, that gives what the
loss needs. A local teacher answers with hidden states, and its head stays here; a server answers with those too, or
with the log-probabilities of a few tokens, requested for the whole window at once: the student trains on the first
micro-batch as soon as that is scored, and the server goes on with the others meanwhile. A server that is away when a
window begins costs nothing: every process saves that step and stops. One that goes away later, and for longer than its
time-out, ends one rank inside the step; the launcher ends the others; the run resumes from the last checkpoint. To
wait for the whole window first would save those steps, and put the server's seconds beside the student's in every step
there is.

A local teacher is laid out like the student: sharded under ZeRO-3 and FSDP2, a copy per process otherwise. With
`offload` its backbone waits in CPU memory and visits the device once per window, before the student's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from vopd_recipes.loss import Head
from vopd_recipes.models import (
    IN_CPU_MEMORY,
    causal_lm_of,
    completion_states,
    gathered,
    head_module,
    head_of,
    layout,
    redirected,
    shards_weights,
    vocabulary_of,
)
from vopd_recipes.packing import MicroBatch
from vopd_recipes.teacher.hidden_states import HiddenStatesView
from vopd_recipes.teacher.interface import TeacherView


class LocalTeacher:
    """A frozen model in the training process.

    Args:
        model: in evaluation mode.
        accelerator: the trainer's; says where the model goes and how it is sharded.
        offload: keep the backbone in CPU memory between windows; under ZeRO-3 it was loaded there
            (`sharding.loading_teacher`).
        compiled: see `fused_loss`.
    """

    remote = False

    def __init__(
        self, model: nn.Module, accelerator: Accelerator, offload: bool = False, compiled: bool = False
    ) -> None:
        self.model, self.compiled = model, compiled
        self.vocabulary = vocabulary_of(model)
        self._device = accelerator.device
        self._offload = offload
        kind = layout(accelerator)
        self.collective = shards_weights(accelerator)
        if kind == "zero3":
            self._engine = _zero3_engine(model, accelerator, offload)
            self._offload = False  # DeepSpeed moves shards by itself
        elif kind.startswith("fsdp"):
            shard_with_fsdp2(model, offload)
            self._offload = False
        elif offload:
            head_module(model).to(self._device)
            self._waiting = _wait_in_cpu_memory(causal_lm_of(model).base_model, self._device, head_module(model))
        else:
            model.to(self._device)

    def views(self, batches: Sequence[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """Hidden states when they are asked for, or all at once where the model visits the device."""
        if not self._offload:
            return [partial(self._view, batch) for batch in batches]
        for parameter, waiting in self._waiting:
            parameter.data = waiting.to(self._device, non_blocking=True)
        ready = [self._view(batch) for batch in batches]
        for parameter, waiting in self._waiting:
            parameter.data = waiting  # it is frozen: what visited is dropped
        return [partial(lambda view: view, view) for view in ready]

    @torch.no_grad()
    def _view(self, batch: MicroBatch) -> LocalView:
        on_device = batch.to(self._device)
        with redirected(self.model, lambda: completion_states(self.model, on_device)):
            hidden = self.model()  # inside its own forward: FSDP2 gathers embeddings and head there
        return LocalView(self, hidden.to(head_module(self.model).weight.dtype))

    @contextmanager
    def head(self) -> Iterator[Head]:
        """The head with its whole weight. Collective under ZeRO-3 and FSDP2."""
        head = head_of(self.model)
        parameters = [head.weight] if head.bias is None else [head.weight, head.bias]
        with gathered(*parameters) as (weight, *bias):
            yield replace(head, weight=weight, bias=bias[0] if bias else None)


def _wait_in_cpu_memory(
    backbone: nn.Module, device: torch.device, head: nn.Linear
) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters that visit the device, and where each waits, pinned for the way; a tied head stays there.

    Buffers are small and stay on the device too.
    """
    for module in backbone.modules():
        module._buffers.update({name: None if b is None else b.to(device) for name, b in module._buffers.items()})
    waiting = [
        (parameter, parameter.data.cpu()) for parameter in backbone.parameters() if parameter is not head.weight
    ]
    if device.type == "cuda":
        waiting = [(parameter, tensor.pin_memory()) for parameter, tensor in waiting]
    for parameter, tensor in waiting:
        parameter.data = tensor
    return waiting


class LocalView(HiddenStatesView):
    """Hidden states [N, H'] of one micro-batch, and the head to read them with."""

    def __init__(self, teacher: LocalTeacher, hidden: Tensor) -> None:
        super().__init__(teacher.compiled)
        self._teacher, self._hidden = teacher, hidden

    @contextmanager
    def states_and_head(self, hidden: Tensor, head: Head) -> Iterator[tuple[Tensor, Head]]:
        """See `HiddenStatesView`. Collective under ZeRO-3 and FSDP2."""
        with self._teacher.head() as teacher:
            yield self._hidden, teacher


def shard_with_fsdp2(model: nn.Module, offload: bool) -> None:
    """Shard the weights over all ranks, layer by layer; each gathers itself while it runs.

    Not accelerate's own preparation: that puts the head into one unit with the last norm, and a teacher's head runs
    beside the model, not in it. In the root's unit it is gathered and freed with every forward.
    """
    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    layers = causal_lm_of(model)._no_split_modules or ()
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, offload_policy=policy)
    fully_shard(model, offload_policy=policy, reshard_after_forward=True)


def _zero3_engine(model: nn.Module, accelerator: Accelerator, offload: bool) -> Any:
    """Shard the teacher's weights over all ranks; its layers gather themselves when they run."""
    import deepspeed  # imported late: it takes seconds

    zero: dict[str, Any] = {"stage": 3}
    if offload:
        zero["offload_param"] = IN_CPU_MEMORY
    configuration = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": accelerator.num_processes,
        "zero_optimization": zero,
        "bf16": {"enabled": head_module(model).weight.dtype == torch.bfloat16},
        "fp16": {"enabled": head_module(model).weight.dtype == torch.float16},
    }
    engine, *_ = deepspeed.initialize(model=model, config=configuration)
    engine.eval()
    return engine
