"""What training finds of PyTorch's settings beside a real engine, as JSON: `settings_worker.py STUDENT OUTPUT`.

In a process of its own, as the engine stays to the process's end. The settings are unusual ones, each another than
PyTorch's own and than what vLLM sets.
"""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from vopd_recipes.models import full_weights
from vopd_recipes.rollout import Sampling, VLLMRollout
from vopd_recipes.rollout.shared_process import SETTINGS, settings_now

VARIABLES = {
    "LOCAL_WORLD_SIZE": "2",
    "OMP_NUM_THREADS": "2",
    "NUMEXPR_MAX_THREADS": "3",
    "TORCHINDUCTOR_COMPILE_THREADS": "5",
}


def unusual() -> None:
    os.environ |= VARIABLES
    torch.set_num_threads(3)
    torch.backends.fp32_precision = "tf32"  # what `tf32: true` does
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch._C._accelerator_setAllocatorSettings("max_split_size_mb:512,garbage_collection_threshold:0.8")
    torch.manual_seed(1234)


def state() -> dict[str, object]:
    """Settings, variables that are not vLLM's own, random numbers; functions by whether they are the ones of now."""
    settings = {name: repr(value) for name, value in settings_now().items() if name != "float32_matmul_precision"}
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "_TORCHINDUCTOR"))}
    numbers = torch.get_rng_state().sum().item()
    return {
        "settings": settings,
        "variables": variables,
        "random numbers": numbers,
        "threads": torch.get_num_threads(),
    }


def main(folder: str, output: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    unusual()
    seen = {"before": state(), "names": sorted(SETTINGS)}
    engine = VLLMRollout(
        model=folder, revision=None, device=torch.device("cpu"), dtype="float32", eos_token_ids={256}, vocabulary=257,
        sampling=Sampling(), max_model_len=64, gpu_memory_utilization=0.1,
    )  # fmt: skip
    seen["started"] = state()
    engine.generate([[1, 2, 3]], [0], 4)
    seen["sampled"] = state()
    engine.sync(full_weights(model))
    engine.generate([[1, 2, 3]], [0], 4)
    seen["again"] = state()
    with engine._settings():
        seen["engine's"] = state()
    torch.set_num_threads(2)  # not the engine's stand-in, which does nothing
    seen["settable"] = torch.get_num_threads()
    output.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
