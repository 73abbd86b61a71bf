"""Training and vLLM share a process, and so PyTorch's settings: each finds its own where it left them.

vLLM sets for the whole process what suits its engine, and nothing afterwards says so. Of 0.32: one CPU thread on a GPU
where `OMP_NUM_THREADS` is unset, with which an optimiser on the CPU takes ten times as long; the precision of float32
products; cuDNN's attention off; on a CPU a `torch.set_num_threads` that does nothing; torch's random numbers, drawn
and started anew; variables that every process started later inherits (`LD_PRELOAD`, `LOCAL_WORLD_SIZE`).

On a CPU `torch.accelerator.synchronize` and `empty_cache` stay as vLLM left them: they failed before and do nothing
now, and its shutdown calls them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

Access = tuple[Callable[[], Any], Callable[[Any], Any]]  # how a setting is read and written


def _attribute(owner: Any, name: str) -> Access:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _precision(backend: str, operation: str) -> Access:
    """Of float32 arithmetic, past what `torch.backends` refuses where the older interface was used as well."""
    return (
        partial(torch._C._get_fp32_precision_getter, backend, operation),
        partial(torch._C._set_fp32_precision_setter, backend, operation),
    )


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def float32_matmul_precision() -> str | None:
    """By PyTorch's older interface; `None` where it refuses to say, as after `tf32: true`, which uses the newer."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


# In the order in which they are written: the older interface of the precision writes what the newer one has to mend.
SETTINGS: dict[str, Access] = {
    "set_num_threads": _attribute(torch, "set_num_threads"),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic": (_deterministic, lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])),
    "float32_matmul_precision": (float32_matmul_precision, torch.set_float32_matmul_precision),
    "generic precision": _precision("generic", "all"),
    **{
        f"{backend} {operation} precision": _precision(backend, operation)
        for backend in ("cuda", "mkldnn")
        for operation in ("all", "matmul", "conv", "rnn")
    },
    **{f"cudnn {name}": _attribute(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")},
    **{
        f"{kind} attention": (
            getattr(torch.backends.cuda, f"{kind}_sdp_enabled"),
            getattr(torch.backends.cuda, f"enable_{kind}_sdp"),
        )
        for kind in ("flash", "mem_efficient", "math", "cudnn")
    },
    **{
        f"reduced precision of {kind} sums": _attribute(
            torch.backends.cuda.matmul, f"allow_{kind}_reduced_precision_reduction"
        )
        for kind in ("fp16", "bf16")
    },
    "allocator": (torch._C._accelerator_getAllocatorSettings, torch._C._accelerator_setAllocatorSettings),
}


def settings_now() -> dict[str, Any]:
    """Every setting's value."""
    return {name: read() for name, (read, _) in SETTINGS.items()}


def apply_settings(values: dict[str, Any]) -> None:
    """Make them so; what is so already is not touched."""
    for name, (read, write) in SETTINGS.items():
        if values[name] is not None and read() != values[name]:
            write(values[name])


class EngineSettings:
    """Inside, the settings are those that the engine left when it was last inside; outside, training's.

    Args:
        device: whose random numbers are training's, too.
    """

    def __init__(self, device: torch.device) -> None:
        self._engines: dict[str, Any] = {}
        self._kind = device.type
        self._devices = [device] if device.type == "cuda" else []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Change over, and back again whatever happens."""
        trainings = settings_now()
        if self._engines:
            apply_settings(self._engines)
        try:
            # training's autocast would cast what the engine computes, its logits in float32 among it
            with torch.random.fork_rng(self._devices), torch.autocast(self._kind, enabled=False):
                yield
        finally:
            self._engines = settings_now()
            apply_settings(trainings)


@contextmanager
def variables_restored() -> Iterator[None]:
    """Environment variables inside are for inside; only vLLM's own, which it reads while it samples, stay."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in [*os.environ]:
            if name not in before and not name.startswith("VLLM_"):
                del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if not name.startswith("VLLM_")})
