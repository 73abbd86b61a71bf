"""The smallest change that makes a recipe fit, and the table that says what needs what.

Changes are tried in the order in which they cost something: first those that are free, then those that cost time, then
those that change what is trained. One change is tried before two, two before three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from vopd_recipes.planner.architectures import Lora
from vopd_recipes.planner.items import PHASES
from vopd_recipes.planner.memory import CONTEXT_BYTES, GB, Plan, plan
from vopd_recipes.planner.states import Setup, Sharding, training_states

_SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


@dataclass(frozen=True)
class Change:
    """What to write where, and the setup that comes of it."""

    words: str
    setup: Setup


def _halved_teacher(setup: Setup) -> Iterator[Change]:
    changed = tuple(
        replace(one, teacher=replace(one.teacher, dtype=setup.half))
        if setup.half and one.teacher and one.teacher.dtype == "float32" and not one.own_base
        else one
        for one in setup.teachers
    )
    if changed != setup.teachers:
        yield Change(f"teacher_dtype: {setup.half}", setup.taught_by(*changed))


def _checkpointed(setup: Setup) -> Iterator[Change]:
    if not setup.checkpointing:
        yield Change("gradient_checkpointing: true", replace(setup, checkpointing=True))


def _smaller_rows(setup: Setup) -> Iterator[Change]:
    prompts, accumulation = setup.prompts, setup.accumulation
    while prompts % 2 == 0:
        prompts, accumulation = prompts // 2, accumulation * 2
        words = f"per_device_train_batch_size: {prompts} with gradient_accumulation_steps: {accumulation}"
        yield Change(words, replace(setup, prompts=prompts, accumulation=accumulation))


def _sharded(setup: Setup) -> Iterator[Change]:
    """Further along the line; FSDP2 is at its end."""
    line: tuple[Sharding, ...] = ("none", "zero0", "zero1", "zero2", "zero3")
    if setup.sharding in line:
        for sharding in line[max(3, line.index(setup.sharding) + 1) :]:
            words = f"accelerate launch --config_file recipes/accelerate_configs/{sharding}.yaml"
            yield Change(words, replace(setup, sharding=sharding))


def _optimizer_offloaded(setup: Setup) -> Iterator[Change]:
    if setup.by_deepspeed and not setup.optimizer_offload:
        words = f'"offload_optimizer": {{"device": "cpu"}} in recipes/deepspeed/{setup.sharding}.json'
        yield Change(words, replace(setup, optimizer_offload=True))


def _teacher_offloaded(setup: Setup) -> Iterator[Change]:
    """Under FSDP2 it is planned where a recipe asks for it, but not proposed: no test of ours has trained with it."""
    changed = tuple(
        one if one.teacher is None or one.teacher_head_only or one.own_base else replace(one, teacher_offload=True)
        for one in setup.teachers
    )
    if changed != setup.teachers and setup.sharding != "fsdp2":
        yield Change("teacher_offload: true", setup.taught_by(*changed))


def _other_share(setup: Setup) -> Iterator[Change]:
    """Nearest first: less where training is short of memory, more where the cache is."""
    if setup.sampler == "vllm":
        for share in sorted(_SHARES, key=lambda share: abs(share - setup.vllm_share)):
            if share != setup.vllm_share:
                yield Change(f"vllm_gpu_memory_utilization: {share:g}", replace(setup, vllm_share=share))


def _more_parallel(setup: Setup) -> Iterator[Change]:
    heads = setup.student.key_value_heads
    for parallel in (2, 4, 8):
        if setup.sampler == "vllm" and parallel > setup.vllm_parallel:
            if setup.gpus % parallel or heads % parallel:
                return
            yield Change(f"vllm_tensor_parallel_size: {parallel}", replace(setup, vllm_parallel=parallel))


def _adapters(setup: Setup) -> Iterator[Change]:
    """LoRA with this library's defaults; the frozen weights need no float32."""
    if setup.student.lora is None:
        dtype = setup.half or setup.student.dtype
        student = replace(setup.student, lora=Lora(64, 128, "all-linear"), dtype=dtype)
        yield Change(f"use_peft: true with dtype: {dtype}", replace(setup, student=student))


def _elsewhere(setup: Setup) -> Iterator[Change]:
    here = [one for one in setup.teachers if one.teacher and not one.teacher_head_only]
    if here and setup.server_suffices:
        away = (replace(one, teacher=None, teacher_offload=False) if one in here else one for one in setup.teachers)
        yield Change("teacher_backend: server", setup.taught_by(*away))


Kind = Callable[[Setup], Iterator[Change]]
_CHANGES: tuple[Kind, ...] = (
    _halved_teacher, _checkpointed, _smaller_rows, _sharded, _optimizer_offloaded, _teacher_offloaded, _other_share,
    _more_parallel, _adapters, _elsewhere,
)  # fmt: skip


def smallest_change(setup: Setup) -> tuple[list[str], Plan] | None:
    """What to change so that it fits, and the plan that comes of it; `None` where nothing known helps."""
    for count in range(1, len(_CHANGES) + 1):
        for kinds in combinations(_CHANGES, count):
            for words, changed in _applied(setup, kinds):
                if _may_fit(changed) and (changed_plan := plan(changed)).fits:
                    return words, changed_plan
    return None


def _applied(setup: Setup, kinds: tuple[Kind, ...]) -> Iterator[tuple[list[str], Setup]]:
    """Every way to make one change of each kind, in order."""
    if not kinds:
        yield [], setup
        return
    for change in kinds[0](setup):
        for words, changed in _applied(change.setup, kinds[1:]):
            yield [change.words, *words], changed


def _may_fit(setup: Setup) -> bool:
    """Whether what is there whatever the batch leaves room: cheap to know, and most combinations end here."""
    states = training_states(setup)
    resident = states.weights + states.gradients + states.optimizer + CONTEXT_BYTES
    return resident <= setup.gpu_bytes


def table(plan: Plan) -> str:
    """GB per GPU, a line per item and a column per phase."""
    rows: list[tuple[str, ...]] = [("GB per GPU", *PHASES)]
    for item in plan.items:
        rows.append((item.name, *(_gigabytes(getattr(item, phase)) for phase in PHASES)))
    rows.append(("total", *(_gigabytes(plan.need(phase)) for phase in PHASES)))
    width = max(len(row[0]) for row in rows)
    lines = [f"| {row[0]:{width}} | " + " | ".join(f"{cell:>8}" for cell in row[1:]) + " |" for row in rows]
    lines.insert(1, f"| {'-' * width} | " + " | ".join("-------:" for _ in PHASES) + " |")
    return "\n".join(lines)


def _gigabytes(size: int) -> str:
    return f"{size / GB:.2f}" if size else ""


def verdict(plan: Plan) -> str:
    """Whether it fits, in one line."""
    need, have = plan.peak / GB, plan.setup.gpu_bytes / GB
    phase = max(PHASES, key=plan.need)
    if plan.peak > plan.setup.gpu_bytes:
        return f"does not fit: the {phase} phase needs {need:.1f} GB of {have:.1f} GB per GPU"
    if plan.starved:
        return (
            f"does not fit: vLLM's share holds {plan.cache_tokens} tokens, and one sequence may have "
            f"{plan.setup.vllm_length}"
        )
    host = f", and {plan.host_bytes / GB:.0f} GB of CPU memory" if plan.host_bytes else ""
    return f"fits: the {phase} phase needs {need:.1f} GB of {have:.1f} GB per GPU{host}"
