"""An adapter becomes a whole model: `python -m vopd_recipes.hub.merge ADAPTER_DIR OUT_DIR BASE [REVISION]`.

W + B A · scale, tensor by tensor, summed in float32 and rounded once to the base's own type. Peak memory: the base in
its own type and a little more (0.65 GB for a base of 0.57 GB, over the 0.5 GB of the imports). A process of its own,
so that all of it is given back, and so that running out of memory ends nothing but the merge.
"""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from vopd_recipes.files import written_whole
from vopd_recipes.hub.queue import link_or_copy
from vopd_recipes.models import full_weights

_TOLERANCE = 0.01  # of the largest logit, on average


@torch.no_grad()
def merge(adapter: Path, out: Path, base: str, revision: str | None = None) -> None:
    """Write the merged model and the adapter's tokenizer, recipe and state to `out`, whole or not at all.

    Args:
        adapter: folder of `adapter_config.json` and `adapter_model.safetensors`.
        out: folder to write.
        base: Hub id or folder of the model under it.
        revision: of the base.

    Raises:
        OSError: the disk has no room for it and as much again, which the run's own checkpoints need.
        RuntimeError: the merged model is not the adapted one.
    """
    causal_lm = AutoModelForCausalLM.from_pretrained(base, revision=revision, dtype="auto", use_safetensors=True)
    _check_room(causal_lm, out)
    model = PeftModel.from_pretrained(causal_lm, adapter).eval()
    adapted = _logits(model)
    targets = {name.replace(".base_layer.", "."): weight for name, weight in causal_lm.named_parameters()}
    for name, merged in full_weights(model):
        if name in targets and targets[name] is not merged:
            targets[name].copy_(merged)
    whole = model.unload()
    _check_same(adapted, _logits(whole))
    with written_whole(out) as temporary:
        whole.save_pretrained(temporary, max_shard_size="5GB")
        for path in sorted(item for item in adapter.rglob("*") if item.is_file()):
            copy = temporary / path.relative_to(adapter)
            if not path.name.startswith("adapter_") and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(path, copy)


def _logits(model: nn.Module) -> Tensor:
    """Of some tokens, [T, V], in float32."""
    return model(input_ids=torch.arange(40, 72)[None], use_cache=False).logits[0].float()


def _check_same(adapted: Tensor, merged: Tensor) -> None:
    """Rounding every weight once more moves a logit by some 1% of the largest."""
    difference, largest = (adapted - merged).abs().mean().item(), adapted.abs().max().item()
    if not difference <= _TOLERANCE * largest:
        raise RuntimeError(
            f"the merged model is not the adapted one: its logits are off by {difference:.2g} on average, of "
            f"{largest:.2g} at most"
        )


def _check_room(model: PreTrainedModel, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = 2 * sum(weight.numel() * weight.element_size() for weight in model.parameters())
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB free, merging takes care to have {needed / 1e9:.1f}")


if __name__ == "__main__":
    merge(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
