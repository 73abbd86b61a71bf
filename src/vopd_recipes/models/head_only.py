"""A teacher's head without the teacher: the one tensor of its checkpoint that turns hidden states into logits.

Its name is that of the model's own output embeddings, built without memory from the configuration; a tied head stands
in a checkpoint under the input embeddings' name. The index says which file holds it, and of that file nothing else is
read: from a folder through safetensors, from the Hub by a request for just those bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfFileSystem
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import cached_file

from vopd_recipes.loss import Head
from vopd_recipes.models.architecture import head_of
from vopd_recipes.models.sharding import unsharded
from vopd_recipes.recipe import ModelConfig, RecipeError, one_line

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# As safetensors spells them.
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_teacher_head(config: ModelConfig) -> Head:
    """The teacher's head, in `teacher_dtype`, detached and in CPU memory.

    Raises:
        RecipeError: the teacher's configuration or its head cannot be read.
    """
    name, revision = str(config.teacher_model_name_or_path), config.teacher_model_revision
    dtype = getattr(torch, config.teacher_dtype or config.dtype)
    try:
        settings = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
        with unsharded(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
        head = head_of(model)
        weight, bias = (_read(name, revision, _names(model, part)) for part in ("weight", "bias"))
    except RecipeError:
        raise
    except Exception as error:  # loaders and remote code raise what they like; each becomes one line
        raise RecipeError(f"teacher_model_name_or_path: cannot read the head of {name}: {one_line(error)}") from error
    if weight is None or (bias is None) != (head.bias is None):
        raise RecipeError(
            f"teacher_model_name_or_path: the checkpoint of {name} holds no {' or '.join(_names(model, 'weight'))}, "
            "which teacher_server_scores: hidden_states reads its head from"
        )
    if weight.shape != head.weight.shape:
        raise RecipeError(
            f"teacher_model_name_or_path: the head of {name} is {tuple(weight.shape)}, its configuration says "
            f"{tuple(head.weight.shape)}"
        )
    return Head(weight.to(dtype), None if bias is None else bias.to(dtype), head.logit_scale, head.softcap)


def _names(model: nn.Module, part: str) -> list[str]:
    """Names under which the head's weight or bias may stand in the checkpoint; none where it has no bias."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    if getattr(head, part, None) is None:
        return []
    names = {id(module): name for name, module in model.named_modules()}
    found = [f"{names[id(head)]}.{part}"]
    if part == "weight" and head.weight is embeddings.weight:
        found.append(f"{names[id(embeddings)]}.{part}")
    return found


def _read(name: str, revision: str | None, tensors: list[str]) -> Tensor | None:
    """The first of these tensors that is in the checkpoint."""
    if not tensors:
        return None
    index = cached_file(name, _INDEX, revision=revision, _raise_exceptions_for_missing_entries=False)
    if index is None:
        return _read_from(name, revision, _SINGLE, tensors)
    files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    held = next((tensor for tensor in tensors if tensor in files), None)
    return None if held is None else _read_from(name, revision, files[held], [held])


def _read_from(name: str, revision: str | None, file: str, tensors: list[str]) -> Tensor | None:
    path = cached_file(
        name, file, revision=revision, local_files_only=True, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if path is None:
        return _read_remotely(f"{name}@{revision}/{file}" if revision else f"{name}/{file}", tensors)
    with safe_open(path, "pt") as saved:
        held = next((tensor for tensor in tensors if tensor in saved.keys()), None)  # noqa: SIM118  # no mapping
        return None if held is None else saved.get_tensor(held)


def _read_remotely(path: str, tensors: list[str]) -> Tensor | None:
    """A tensor's own bytes of a safetensors file on the Hub: 8 bytes of length, the header, the tensors."""
    with HfFileSystem().open(path, "rb", block_size=0) as remote:
        (length,) = struct.unpack("<Q", remote.read(8))
        header: dict[str, Any] = json.loads(remote.read(length))
    held = next((tensor for tensor in tensors if tensor in header), None)
    if held is None:
        return None
    first, last = header[held]["data_offsets"]
    with HfFileSystem().open(path, "rb") as remote:
        remote.seek(8 + length + first)
        content = bytearray(remote.read(last - first))
    if len(content) != last - first:
        raise OSError(f"{path} ends in the middle of {held}")
    return torch.frombuffer(content, dtype=_TYPES[header[held]["dtype"]]).view(header[held]["shape"])
