"""What memory depends on, and what of it is there whatever the batch: weights, gradients, optimiser states.

ZeRO-1 and 2 shard each parameter group, padded to a multiple of 2N elements, into N equal parts; ZeRO-3 shards each
parameter, padded to a multiple of N; FSDP2 shards rows, and rank 0 has the most. All of it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Literal

from vopd_recipes.planner.architectures import Architecture, Parameter, parameters_of
from vopd_recipes.recipe import RecipeError

Sharding = Literal["none", "zero0", "zero1", "zero2", "zero3", "fsdp2"]
# Elements that DeepSpeed's ZeRO-3 updates at a time, and how many gathered ones it lets live, by default.
SUB_GROUP = 10**9
# Moments per parameter, and whether the update makes a temporary copy of one.
OPTIMIZERS = {"adamw_torch": (2, True), "adamw_torch_fused": (2, False), "sgd": (0, False)}


@dataclass(frozen=True)
class TeacherSetup:
    """One teacher; the fields are `Setup`'s, which holds the first and has the others beside it."""

    teacher_name: str
    teacher: Architecture | None
    teacher_offload: bool
    teacher_head_only: bool
    own_base: bool


@dataclass(frozen=True)
class Setup:
    """Everything that memory depends on."""

    gpus: int
    gpu_bytes: int
    sharding: Sharding
    student: Architecture
    teacher: Architecture | None  # None: a server that scores
    half: str | None  # type of mixed precision
    optim: str
    checkpointing: bool
    prompts: int  # per device and micro-batch
    generations: int
    accumulation: int
    prompt_tokens: int
    completion_tokens: int
    sampler: str
    sampler_rows: int  # sampled at a time, by transformers, at most
    vllm_share: float
    vllm_parallel: int
    vllm_itemsize: int
    vllm_length: int
    teacher_offload: bool
    teacher_name: str = ""  # of the first of several
    other_teachers: tuple[TeacherSetup, ...] = ()
    teacher_prompt_tokens: int | None = None  # of a privileged teacher's
    own_base: bool = False  # the teacher is the student without its adapters, in one copy
    teacher_head_only: bool = False  # a server gives hidden states, and the head that reads them is here
    server_suffices: bool = False  # a teacher server can give what the estimator needs
    held_out_rows: int = 0  # that an evaluation samples on a device
    loss_compile: bool = False
    optimizer_offload: bool = False
    parameter_offload: bool = False
    accumulates_float32: bool = True  # DeepSpeed, whatever type gradients come in
    reduce_bucket: int | None = None  # elements; default: hidden size squared
    overlap_comm: bool = True
    persistence: int | None = None  # elements; default: 10 hidden sizes
    max_live: int = 10**9  # elements

    def __post_init__(self) -> None:
        if self.optim not in OPTIMIZERS:
            raise RecipeError(f"optim: {self.optim} is not planned for; known are {', '.join(OPTIMIZERS)}")
        if self.sampler != "vllm":
            return
        heads, parallel = self.student.key_value_heads, self.vllm_parallel
        if self.gpus % parallel or heads % parallel:
            raise RecipeError(
                f"vllm_tensor_parallel_size: {parallel} must divide the {self.gpus} GPUs and the student's {heads} "
                "key-value heads"
            )

    @property
    def by_deepspeed(self) -> bool:
        """Whether DeepSpeed lays the model out, and keeps a float32 copy of what is trained."""
        return self.sharding.startswith("zero")

    @property
    def widens_gradients(self) -> bool:
        """Whether gradients are of a larger type than the weights; ZeRO-0 refuses to."""
        return self.by_deepspeed and self.sharding != "zero0" and bool(self.half) and self.accumulates_float32

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return self.sharding in ("zero3", "fsdp2")

    @property
    def computed_in(self) -> Architecture:
        """The student as its forward sees it: cast as a whole by DeepSpeed and FSDP2, by autocast where it is not.

        A model that ZeRO-3 shards while it loads is cast there, before it has adapters: they stay in float32.
        """
        if not self.half or self.sharding == "none":
            return self.student
        student, adapters_too = self.student, bool(self.student.lora) and self.sharding != "zero3"
        return Architecture(student.name, student.revision, self.half, student.lora, adapters_too)

    @property
    def kept_as(self) -> Architecture:
        """The student as it is kept between layers."""
        return self.computed_in if self.by_deepspeed else self.student

    @property
    def autocast(self) -> str | None:
        """Type of mixed precision where the weights stay as they are."""
        return self.half if self.sharding == "none" else None

    @property
    def sequences(self) -> tuple[int, ...]:
        """Lengths of the sequences of a micro-batch, all as long as they may be."""
        return (self.prompt_tokens + self.completion_tokens - 1,) * (self.prompts * self.generations)

    @property
    def teacher_sequences(self) -> tuple[int, ...]:
        """The same, as the teacher reads them."""
        longer = (self.teacher_prompt_tokens or self.prompt_tokens) - self.prompt_tokens
        return tuple(length + longer for length in self.sequences)

    @property
    def of_each_teacher(self) -> tuple[Setup, ...]:
        """The setup as each teacher has it, who is then the only one."""
        return tuple(self.taught_by(one) for one in self.teachers)

    @property
    def teachers(self) -> tuple[TeacherSetup, ...]:
        """All of them."""
        first = TeacherSetup(**{item.name: getattr(self, item.name) for item in fields(TeacherSetup)})
        return first, *self.other_teachers

    def taught_by(self, first: TeacherSetup, *others: TeacherSetup) -> Setup:
        """The same setup with these teachers."""
        return replace(self, **vars(first), other_teachers=others)

    @property
    def mixed_teachers(self) -> int:
        """How many a micro-batch may mix: the loss forms a gradient of the head for each."""
        return min(1 + len(self.other_teachers), self.prompts)

    @property
    def targets(self) -> int:
        """Completion tokens of a micro-batch."""
        return self.completion_tokens * self.prompts * self.generations


@dataclass(frozen=True)
class States:
    """Bytes per GPU of the student's weights, gradients and optimiser state."""

    weights: int
    gradients: int
    optimizer: int
    part: int  # elements that this GPU updates


def training_states(setup: Setup) -> States:
    """What is there whatever the batch: exact."""
    parameters = parameters_of(setup.kept_as)
    trained = [parameter for parameter in parameters if parameter.trained]
    moments, _ = OPTIMIZERS[setup.optim]
    scalar = 4 if setup.optim == "adamw_torch_fused" else 0  # the step count, which only this one keeps on the GPU
    if setup.by_deepspeed:
        return _deepspeed_states(setup, parameters, trained, moments, scalar)
    shares = [(parameter, elements_of(parameter, setup)) for parameter in parameters]
    own = [(parameter, numel) for parameter, numel in shares if parameter.trained]
    size = sum(numel * itemsize_of(parameter, setup) for parameter, numel in own)
    return States(
        weights=sum(numel * itemsize_of(parameter, setup) for parameter, numel in shares),
        gradients=size,
        optimizer=moments * size + scalar * len(own),
        part=sum(numel for _, numel in own),
    )


def _deepspeed_states(
    setup: Setup, parameters: tuple[Parameter, ...], trained: list[Parameter], moments: int, scalar: int
) -> States:
    groups = [[p for p in trained if p.decayed], [p for p in trained if not p.decayed]]
    ways = 1 if setup.sharding == "zero0" else setup.gpus
    if setup.sharding == "zero3":
        part = sum(ceil(parameter.numel / ways) for parameter in trained)
        tensors = sum(ceil(sum(ceil(p.numel / ways) for p in group) / SUB_GROUP) for group in groups if group)
    else:
        part = sum(2 * ceil(sum(p.numel for p in group) / (2 * ways)) for group in groups)
        tensors = sum(map(bool, groups))
    itemsize, total = parameters[0].itemsize, sum(parameter.numel for parameter in trained)  # gradients' type as well
    padding = 0 if setup.sharding == "zero3" else (ways * part - total) * itemsize
    weights = sum(elements_of(parameter, setup) * parameter.itemsize for parameter in parameters) + padding
    gradients = (part if setup.sharding in ("zero2", "zero3") else total) * itemsize
    if setup.widens_gradients:  # ZeRO-1 keeps those that are added as well
        gradients = 4 * ways * part + gradients if setup.sharding == "zero1" else 4 * part
    if setup.optimizer_offload:  # ZeRO-2 adds up in float32 before they go, on the GPU
        return States(weights, gradients if setup.widens_gradients and setup.sharding == "zero2" else 0, 0, part)
    return States(weights, gradients, 4 * part * (1 + moments) + scalar * tensors, part)


def elements_of(parameter: Parameter, setup: Setup) -> int:
    """Elements of a parameter that a GPU keeps between layers."""
    if setup.sharding == "fsdp2":
        return ceil(parameter.rows / setup.gpus) * (parameter.numel // parameter.rows)
    if setup.sharding != "zero3":
        return parameter.numel
    persistent = parameter.numel <= (setup.persistence or 10 * setup.student.config.hidden_size)
    shard = ceil(parameter.numel / setup.gpus)
    return (0 if setup.parameter_offload else shard) + (setup.gpus * shard if persistent else 0)


def itemsize_of(parameter: Parameter, setup: Setup) -> int:
    """FSDP2 keeps what is trained in float32 where the precision is mixed."""
    return 4 if setup.sharding == "fsdp2" and setup.half and parameter.trained else parameter.itemsize
