"""A LoRA student whose teacher is its own base: one copy of the weights, adapters off for the teacher's turn.

The adapters are all that is trained, so the weights under them are the teacher's to the bit, however the model is laid
out; ZeRO-3 and FSDP2 gather them as for the student. The teacher's turn goes through the wrapped model, because a
sharded one has no weights outside of that, and its head is the one that the student's loss has at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from vopd_recipes.loss import Head
from vopd_recipes.models import completion_states, evaluating, redirected, shards_weights, vocabulary_of
from vopd_recipes.packing import MicroBatch
from vopd_recipes.teacher.hidden_states import HiddenStatesView
from vopd_recipes.teacher.interface import TeacherView


class OwnBase:
    """A `Teacher` that is the student without its adapters.

    Args:
        student: with adapters.
        accelerator: the trainer's.
        wrapped: gives the student inside its distributed wrapper, which is there once training starts.
        compiled: see `fused_loss`.
    """

    remote = False

    def __init__(
        self, student: PeftModel, accelerator: Accelerator, wrapped: Callable[[], nn.Module], compiled: bool = False
    ) -> None:
        self.vocabulary = vocabulary_of(student)
        self.collective = shards_weights(accelerator)
        self.compiled = compiled
        self._student, self._accelerator, self._wrapped = student, accelerator, wrapped

    def views(self, batches: Sequence[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """Hidden states, when they are asked for."""
        return [partial(self._view, batch) for batch in batches]

    @torch.no_grad()
    def _view(self, batch: MicroBatch) -> TeacherView:
        on_device, wrapped = batch.to(self._accelerator.device), self._wrapped()
        states = redirected(self._student, lambda _: completion_states(self._student, on_device))
        with self._student.disable_adapter(), evaluating(wrapped), self._accelerator.autocast(), states:
            return _OwnBaseView(self, wrapped(on_device.input_ids))


class _OwnBaseView(HiddenStatesView):
    """Hidden states [N, H] of the base; the head is the student's."""

    def __init__(self, teacher: OwnBase, hidden: Tensor) -> None:
        super().__init__(teacher.compiled)
        self._hidden = hidden

    def states_and_head(self, hidden: Tensor, head: Head) -> AbstractContextManager[tuple[Tensor, Head]]:
        """See `HiddenStatesView`."""
        return nullcontext((self._hidden.to(hidden.dtype), head))
