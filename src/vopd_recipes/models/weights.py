"""The full, merged weights of a sharded or LoRA model, one tensor at a time.

Whoever wants the student's weights (vLLM, a copy that samples, a file) wants them whole and with the adapters merged:
W + B A · scale. Buffers that a checkpoint holds (a router's correction bias) are weights too. Under ZeRO-3 and FSDP2
no process holds a whole tensor, so each is gathered, handed on and freed before the next: the memory this takes is
that of the largest tensor, not of the model. The base weights are read and never written: merging in place and undoing
it drifts in bfloat16.

Gathering is collective: every process must take every tensor, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from vopd_recipes.models.architecture import causal_lm_of
from vopd_recipes.models.sharding import gathered
from vopd_recipes.recipe import RecipeError


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and full tensor of each parameter and persistent buffer of the causal language model, adapters merged.

    Collective. Names are the model's own, without those of adapters. Tied parameters come under each of their names: a
    reader that keeps its own tied copy needs both. A tensor is valid until the next one is asked for.

    Args:
        model: the student, outside any distributed wrapper, with or without adapters.
    """
    causal_lm = causal_lm_of(model)
    layers = {name: module for name, module in causal_lm.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in causal_lm.named_parameters(remove_duplicate=False):
        owner, _, attribute = name.partition(".base_layer.")
        if attribute:
            with gathered(parameter, *_adapter_weights(layers[owner])) as (base, *adapters):
                yield f"{owner}.{attribute}", _merged(layers[owner], base, adapters) if attribute == "weight" else base
        elif not _is_adapter(name):
            with gathered(parameter) as (full,):
                yield name, full
    for name, buffer in _persistent_buffers(causal_lm):  # of which every process has the whole
        yield name.replace(".base_layer.", "."), buffer.detach()


def checkpoint_weights(model: nn.Module, named_weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """`full_weights` under the names and in the parts of the checkpoint, as `save_pretrained` writes them.

    transformers fuses while it loads: the experts of a layer are one tensor here and one per expert in the file.

    Args:
        model: the student, which knows how its file was converted.
        named_weights: its weights.
    """
    causal_lm = causal_lm_of(model)
    for name, tensor in named_weights:
        yield from revert_weight_conversion(causal_lm, {name: tensor}).items()


def load_weights(student: PreTrainedModel, folder: Path) -> None:
    """Read back, to the bit, what `save_pretrained` wrote of this model.

    By `from_pretrained`, which knows the names of the file: those of experts and of models that read pictures are not
    the model's own, and `load_state_dict` would leave such weights as they are.

    Raises:
        RecipeError: a weight is missing there.
    """
    kinds = {tensor.dtype for tensor in student.state_dict().values() if tensor.is_floating_point()}
    dtype = kinds.pop() if len(kinds) == 1 else torch.float32  # which holds those of any other
    read: Any = type(student).from_pretrained
    config = copy.deepcopy(student.config)
    saved, found = read(folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True)
    if lacking := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        raise RecipeError(f"{folder}: holds no weight {lacking[0]} of this model; name another output_dir")
    student.load_state_dict(saved.state_dict())


def _persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _adapter_weights(layer: LoraLayer) -> list[Tensor]:
    """A [r, in] and B [out, r] of each of its adapters in use, one after the other."""
    if isinstance(layer, lora.Embedding):
        parts = (layer.lora_embedding_A, layer.lora_embedding_B)
        return [part[name] for name in _adapters(layer) for part in parts]
    matrices = (matrix[name] for name in _adapters(layer) for matrix in (layer.lora_A, layer.lora_B))
    return [cast(nn.Parameter, matrix.weight) for matrix in matrices]


def _adapters(layer: LoraLayer) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.r]


@torch.no_grad()
def _merged(layer: Any, base: Tensor, adapters: list[Tensor]) -> Tensor:
    """W + Σ B A · scale, multiplied in float32 and rounded once to W's type: a new tensor.

    Embeddings [V, H] and the Conv1D of GPT-2 [in, out] hold the transpose of what a linear layer does.
    """
    total = base.float()
    for name, a, b in zip(_adapters(layer), adapters[::2], adapters[1::2]):
        left, right = (a.T, b.T) if isinstance(layer, lora.Embedding) or layer.fan_in_fan_out else (b, a)
        total = torch.addmm(total, left.float(), right.float(), alpha=layer.scaling[name])
    return total.to(base.dtype)


@torch.no_grad()
def merging_error(model: nn.Module, forward: Callable[[], Any]) -> float:
    """The largest error of a merged layer on what it reads in a forward, relative to what its adapters change.

    Fresh adapters change nothing, so noise stands in for B meanwhile: as large a change as the weight itself.

    Args:
        model: the student, whole, in evaluation mode.
        forward: runs it.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    before = [[matrix.clone() for matrix in _adapter_weights(layer)] for layer in layers]
    errors: list[float] = []

    def compare(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        base = layer.get_base_layer()
        plain = base(*inputs)
        merged = {"weight": _merged(layer, base.weight, _adapter_weights(layer))}
        error = (functional_call(base, merged, inputs) - output).float().norm()
        errors.append((error / (output - plain).float().norm().clamp_min(1e-20)).item())

    hooks = [layer.register_forward_hook(compare) for layer in layers]
    try:
        for layer in layers:
            for a, b in zip(_adapter_weights(layer)[::2], _adapter_weights(layer)[1::2]):
                generator = torch.Generator(b.device).manual_seed(0)
                b.normal_(generator=generator)
                b.mul_(layer.get_base_layer().weight.norm() / (b @ a).norm().clamp_min(1e-20))
        forward()
    finally:
        for hook in hooks:
            hook.remove()
        for layer, matrices in zip(layers, before):
            for matrix, value in zip(_adapter_weights(layer), matrices):
                matrix.copy_(value)
    return max(errors, default=0.0)


class FullCopy:
    """An unsharded copy of a sharded student that has weights only while it samples.

    Decoding with the sharded model itself would gather every layer once per token, on every process, for as many
    tokens as the longest completion anywhere has.

    Args:
        student: whose configuration is taken.
        device: where the copy lives.
    """

    def __init__(self, student: nn.Module, device: torch.device) -> None:
        causal_lm = causal_lm_of(student)
        default = torch.get_default_dtype()
        torch.set_default_dtype(causal_lm.dtype)
        try:
            with device:  # the class itself, not `from_config`: under ZeRO-3 that would shard the copy as well
                copy = type(causal_lm)(causal_lm.config)
        finally:
            torch.set_default_dtype(default)
        self.model: PreTrainedModel = copy.eval().requires_grad_(False)
        self.release()

    def fill(self, named_weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the student's weights."""
        ours = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
        for name, tensor in named_weights:
            ours[name].data = tensor.to(ours[name], copy=True)

    def release(self) -> None:
        """Give the memory back."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)
