"""What tests/test_families.py asks of vLLM: a model of each family, from its file and after three hand-overs.

Arguments: a folder to work in. One process for all of them: importing vLLM takes as long as an engine does. Writes
what it saw as JSON to `seen.json` there.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from test_weights import FAMILIES, random_model
from transformers import AutoModelForCausalLM
from vllm_worker import NEW_TOKENS, PROMPTS, SEEDS, VOCABULARY, gaps

from vopd_recipes.models import checkpoint_weights, full_weights
from vopd_recipes.rollout import Sampling, VLLMRollout


def gap_after_syncs(folder: Path) -> list[float]:
    """Largest differences between the trainer's and the engine's log-probabilities: at the start, after each step."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    engine = VLLMRollout(
        model=str(folder), revision=None, device=torch.device("cpu"), dtype="float32", eos_token_ids={256},
        vocabulary=VOCABULARY, sampling=Sampling(), max_model_len=64, gpu_memory_utilization=0.1, max_num_seqs=8,
        as_saved=partial(checkpoint_weights, model),
    )  # fmt: skip
    found = [gaps(model, engine.generate(PROMPTS, SEEDS, NEW_TOKENS))["gap"]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
        engine.sync(full_weights(model))
        found.append(gaps(model, engine.generate(PROMPTS, SEEDS, NEW_TOKENS))["gap"])
    return found


def main(folder: Path) -> None:
    seen: dict[str, object] = {}
    for name, settings in FAMILIES.items():
        random_model(settings).save_pretrained(folder / name)
        seen[name] = gap_after_syncs(folder / name)
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
