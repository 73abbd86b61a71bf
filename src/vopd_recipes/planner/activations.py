"""What a forward and a backward keep alive, counted on the model's own code with tensors that hold no data.

There is no formula per architecture here: the model runs in `FakeTensorMode`, where every operation computes shapes
only, and a dispatch mode adds up the storages that are alive. With L identical layers the bytes alive at any moment
that matters grow by the same amount per layer, so two small models give all of them:

    bytes(L) = bytes(n) + (L - n) / p · (bytes(n + p) - bytes(n)),

where p is the period of the layer types (1 where all are alike) and n its first multiple from 4 on: with fewer layers
the peak is elsewhere.

Gradients of weights are left out, for they are there all the time; a gradient on its way to be added is not. The
operations are those of the CPU's kernels: flash attention keeps the same tensors on both devices, and autocast casts
in the same places.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from vopd_recipes.models import causal_lm_of, packed_arguments
from vopd_recipes.planner.architectures import Architecture, build
from vopd_recipes.recipe import RecipeError, one_line

_FEWEST_LAYERS = 4


@dataclass(frozen=True)
class Activations:
    """Bytes on the device besides weights and their gradients."""

    forward: int  # the most during the forward
    at_loss: int  # after the forward, while the loss is computed
    backward: int  # the most during the backward, which starts from the gradient of the last hidden states


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations allocate and nothing has freed: `now`, and the most there were, `peak`.

    Args:
        known: tensors that were there before and do not count.
    """

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


@lru_cache(maxsize=256)
def training_activations(
    architecture: Architecture, lengths: tuple[int, ...], autocast: str | None, checkpointing: bool
) -> Activations:
    """Forward and backward of the backbone on one packed row.

    Args:
        architecture: the student, in the type that its layers multiply in or, under autocast, are kept in.
        lengths: of the row's sequences, in tokens.
        autocast: the type of mixed precision, or `None`.
        checkpointing: recompute each layer in the backward pass.
    """

    def count(config: PreTrainedConfig) -> tuple[int, ...]:
        with FakeTensorMode():
            model: Any = _without_data(architecture, config)
            if checkpointing:
                causal_lm_of(model).gradient_checkpointing_enable({"use_reentrant": False})
            return count_training(model.train(), lengths, autocast)

    return Activations(*_extrapolated(architecture, count))


@lru_cache(maxsize=256)
def inference_peak(architecture: Architecture, lengths: tuple[int, ...], autocast: str | None, frozen: bool) -> int:
    """The most bytes at any moment of the backbone's forward without gradients.

    Args:
        architecture: student or teacher.
        lengths: of the sequences, in tokens.
        autocast: the type of mixed precision, or `None`.
        frozen: the weights are never trained; autocast keeps copies of those that are until its end.
    """

    def count(config: PreTrainedConfig) -> tuple[int, ...]:
        with FakeTensorMode(), torch.no_grad():
            model = _without_data(architecture, config).eval()
            if frozen:
                model.requires_grad_(False)
            hidden = torch.zeros(1, sum(lengths), config.hidden_size, dtype=causal_lm_of(model).dtype)
            with LiveBytes(_tensors_of(model)) as live, _autocast(autocast):
                _backbone(model, hidden, lengths)
            return (live.peak + hidden.nbytes,)

    return _extrapolated(architecture, count)[0]


def count_training(model: nn.Module, lengths: tuple[int, ...], autocast: str | None) -> tuple[int, int, int]:
    """The three figures of `Activations`, of a model on the CPU with or without data, whatever its size."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    embedding: Any = causal_lm_of(model).get_input_embeddings()
    hidden = torch.zeros(1, sum(lengths), embedding.weight.shape[1], dtype=embedding.weight.dtype)
    hidden.requires_grad_(embedding.weight.requires_grad)
    with LiveBytes(_tensors_of(model)) as live:
        with _autocast(autocast):
            output = _backbone(model, hidden, lengths)
            forward, at_loss = live.peak, live.now
        live.peak = live.now
        output.backward(torch.zeros_like(output))
    return forward + hidden.nbytes, at_loss + hidden.nbytes, live.peak + hidden.nbytes


def _without_data(architecture: Architecture, config: PreTrainedConfig) -> nn.Module:
    """The model with tensors of the active `FakeTensorMode`; adapters cannot be added inside it."""
    with unset_fake_temporarily(), torch.device("meta"):
        model = build(architecture, config)
    seen: dict[int, Any] = {}  # tied parameters stay tied
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in seen:
                data = torch.empty(tensor.shape, dtype=tensor.dtype)
                trained = tensor.requires_grad
                seen[id(tensor)] = nn.Parameter(data, trained) if isinstance(tensor, nn.Parameter) else data
            setattr(module, name, seen[id(tensor)])
    return model


def _backbone(model: nn.Module, hidden: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Last hidden states [1, T, H] of embedded tokens [1, T, H]: the embedding's own gradient is counted elsewhere."""
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = packed_arguments(causal_lm_of(model).config._attn_implementation, lengths, hidden.device)
    backbone: Any = causal_lm_of(model).base_model
    return backbone(inputs_embeds=hidden, position_ids=positions, use_cache=False, **packed).last_hidden_state


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()


def _autocast(dtype: str | None) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", getattr(torch, dtype)) if dtype else contextlib.nullcontext()


def _extrapolated(architecture: Architecture, count: Callable[[PreTrainedConfig], tuple[int, ...]]) -> tuple[int, ...]:
    """What `count` would say of all layers, from two small numbers of them.

    Raises:
        RecipeError: the model does what cannot be done without data: where tokens go to experts, say.
    """
    config = architecture.config
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # which would print the traceback
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return _counted(config, count)
    except RecipeError:
        raise
    except Exception as error:  # models raise what they like; each becomes one line
        raise RecipeError(f"{architecture.name}: cannot be planned for: {one_line(error, 200)}") from error
    finally:
        logger.setLevel(level)


def _counted(config: PreTrainedConfig, count: Callable[[PreTrainedConfig], tuple[int, ...]]) -> tuple[int, ...]:
    layers, period = config.num_hidden_layers, _period(config)
    few = -(-_FEWEST_LAYERS // period) * period
    if layers < few + period:
        return count(config)
    less, more = count(_first_layers(config, few)), count(_first_layers(config, few + period))
    return tuple(a + (layers - few) * (b - a) // period for a, b in zip(less, more))


def _period(config: PreTrainedConfig) -> int:
    """After how many layers their types repeat."""
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    return next(p for p in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i - p] for i in range(p, len(kinds))))


def _first_layers(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    return config
