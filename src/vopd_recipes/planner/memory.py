"""What a recipe needs on each GPU, computed before any weight is loaded.

Four sums, of which the largest must fit (P parameters, N processes, b bytes per element):

    weights     bP on each GPU, or sharded under ZeRO-3 and FSDP2
    gradients   bP of what is trained; sharded from ZeRO-2 on; twice with DDP's buckets; in float32 under ZeRO,
                where its configuration says so, as ours do
    optimiser   Adam's two moments in the type of the weights; under ZeRO in float32, with a float32 copy: 12 P/N
    activations counted by `activations`; a logit chunk and the head's gradient as `fused` allocates them

ZeRO-1 and 2 cut each parameter group, padded to a multiple of 2N elements, into N equal parts; ZeRO-3 cuts each
parameter, padded to a multiple of N; FSDP2 shards rows, and rank 0 has the most. Weights, gradients and
optimiser states are exact; activations are those of rows in which every completion is as long as it may be.

1 GB is 10⁹ bytes. An "80 GB" card has 85·10⁹: the difference is for fragmentation, and for vLLM, whose share is of the
real card: at 0.3 of it, 1.5 GB more than is said here, which its cache has as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from vopd_recipes.loss import BLOCKS_PER_CHUNK, BUFFER_BYTES
from vopd_recipes.planner.activations import inference_peak, training_activations
from vopd_recipes.planner.architectures import Architecture, Parameter, parameters_of
from vopd_recipes.recipe import RecipeError

GB = 10**9
PHASES = ("rollout", "teacher", "loss", "backward", "update")
Sharding = Literal["none", "zero0", "zero1", "zero2", "zero3", "fsdp2"]

# Assumed, not computed: the CUDA context with cuBLAS and NCCL workspaces; what vLLM keeps of its own while it sleeps
# (CUDA graphs, communicators); what it needs besides weights and cache while it samples.
CONTEXT_BYTES = 2 * GB
VLLM_ASLEEP_BYTES = 1 * GB
VLLM_WORKING_BYTES = 2 * GB
# float32 logits, their log-softmax, and probabilities and their sum in float64, per vocabulary entry of a drawn row.
_DRAWING_BYTES = 30
# Elements that DeepSpeed's ZeRO-3 updates at a time, and how many gathered ones it lets live, by default.
_SUB_GROUP = 10**9

# Moments per parameter, and whether the update makes a temporary copy of one.
_OPTIMIZERS = {"adamw_torch": (2, True), "adamw_torch_fused": (2, False), "sgd": (0, False)}


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
    sampler_rows: int  # sampled at a time, by transformers
    vllm_share: float
    vllm_parallel: int
    vllm_itemsize: int
    vllm_length: int
    teacher_offload: bool
    teacher_head_only: bool = False  # a server gives hidden states, and the head that reads them is here
    server_suffices: bool = False  # a teacher server can give what the estimator needs
    optimizer_offload: bool = False
    parameter_offload: bool = False
    accumulates_float32: bool = True  # DeepSpeed, whatever type gradients come in
    reduce_bucket: int | None = None  # elements; default: hidden size squared
    overlap_comm: bool = True
    persistence: int | None = None  # elements; default: 10 hidden sizes
    max_live: int = 10**9  # elements

    def __post_init__(self) -> None:
        if self.optim not in _OPTIMIZERS:
            raise RecipeError(f"optim: {self.optim} is not planned for; known are {', '.join(_OPTIMIZERS)}")
        if self.sampler != "vllm":
            return
        heads, parallel = self.student.config.num_key_value_heads, self.vllm_parallel
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
    def targets(self) -> int:
        """Completion tokens of a micro-batch."""
        return self.completion_tokens * self.prompts * self.generations


@dataclass(frozen=True)
class Item:
    """Bytes of one thing in each phase."""

    name: str
    rollout: int = 0
    teacher: int = 0
    loss: int = 0
    backward: int = 0
    update: int = 0

    @staticmethod
    def always(name: str, size: int) -> Item:
        """The same in all phases."""
        return Item(name, size, size, size, size, size)


@dataclass(frozen=True)
class Plan:
    """What each phase needs on the fullest GPU."""

    setup: Setup
    items: tuple[Item, ...]
    cache_tokens: int | None  # tokens for which vLLM has room

    def need(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(getattr(item, phase) for item in self.items)

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return max(map(self.need, PHASES))

    @property
    def starved(self) -> bool:
        """Whether vLLM has no room for even one sequence."""
        return self.cache_tokens is not None and self.cache_tokens < self.setup.vllm_length

    @property
    def host_bytes(self) -> int:
        """CPU memory that offloading takes per GPU: of the optimiser, states, copy and gradient in float32, and b."""
        setup = self.setup
        per_element = 20 if setup.widens_gradients and setup.sharding == "zero3" else 18
        optimizer = per_element * training_states(setup).part if setup.optimizer_offload else 0
        if not (setup.teacher and setup.teacher_offload):
            return optimizer
        teacher = sum(parameter.numel * parameter.itemsize for parameter in parameters_of(setup.teacher))
        return optimizer + (ceil(teacher / setup.gpus) if setup.sharded else teacher)

    @property
    def fits(self) -> bool:
        """Whether every phase has the memory it needs."""
        return self.peak <= self.setup.gpu_bytes and not self.starved


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
    moments, _ = _OPTIMIZERS[setup.optim]
    scalar = 4 if setup.optim == "adamw_torch_fused" else 0  # the step count, which only this one keeps on the GPU
    if setup.by_deepspeed:
        return _deepspeed_states(setup, parameters, trained, moments, scalar)
    shares = [(parameter, _elements(parameter, setup)) for parameter in parameters]
    own = [(parameter, numel) for parameter, numel in shares if parameter.trained]
    size = sum(numel * _itemsize(parameter, setup) for parameter, numel in own)
    return States(
        weights=sum(numel * _itemsize(parameter, setup) for parameter, numel in shares),
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
        tensors = sum(ceil(sum(ceil(p.numel / ways) for p in group) / _SUB_GROUP) for group in groups if group)
    else:
        part = sum(2 * ceil(sum(p.numel for p in group) / (2 * ways)) for group in groups)
        tensors = sum(map(bool, groups))
    itemsize, total = parameters[0].itemsize, sum(parameter.numel for parameter in trained)  # gradients' type as well
    padding = 0 if setup.sharding == "zero3" else (ways * part - total) * itemsize
    weights = sum(_elements(parameter, setup) * parameter.itemsize for parameter in parameters) + padding
    gradients = (part if setup.sharding in ("zero2", "zero3") else total) * itemsize
    if setup.widens_gradients:  # ZeRO-1 keeps those that are added as well
        gradients = 4 * ways * part + gradients if setup.sharding == "zero1" else 4 * part
    if setup.optimizer_offload:  # ZeRO-2 adds up in float32 before they go, on the GPU
        return States(weights, gradients if setup.widens_gradients and setup.sharding == "zero2" else 0, 0, part)
    return States(weights, gradients, 4 * part * (1 + moments) + scalar * tensors, part)


def _elements(parameter: Parameter, setup: Setup) -> int:
    """Elements of a parameter that a GPU keeps between layers."""
    if setup.sharding == "fsdp2":
        return ceil(parameter.rows / setup.gpus) * (parameter.numel // parameter.rows)
    if setup.sharding != "zero3":
        return parameter.numel
    persistent = parameter.numel <= (setup.persistence or 10 * setup.student.config.hidden_size)
    shard = ceil(parameter.numel / setup.gpus)
    return (0 if setup.parameter_offload else shard) + (setup.gpus * shard if persistent else 0)


def _itemsize(parameter: Parameter, setup: Setup) -> int:
    """FSDP2 keeps what is trained in float32 where the precision is mixed."""
    return 4 if setup.sharding == "fsdp2" and setup.half and parameter.trained else parameter.itemsize


def plan(setup: Setup) -> Plan:
    """Every item of every phase.

    Raises:
        RecipeError: a model whose configuration cannot be had.
    """
    sampling, cache_tokens = _sampling(setup)
    items = [
        *_states(setup),
        *_teacher(setup),
        *_activations(setup),
        *_sharding_buffers(setup),
        *sampling,
        Item.always("CUDA context, workspaces (assumed)", CONTEXT_BYTES),
    ]
    return Plan(setup, tuple(item for item in items if any(getattr(item, phase) for phase in PHASES)), cache_tokens)


def _states(setup: Setup) -> list[Item]:
    states, (_, copies) = training_states(setup), _OPTIMIZERS[setup.optim]
    resident = setup.sharding == "zero3"  # its gradients have a buffer that stays
    before = states.gradients if resident or not setup.teacher_offload else 0
    items = [
        Item.always("student: weights", states.weights),
        Item("student: gradients", states.gradients if resident else 0, before, *[states.gradients] * 3),
        Item.always("student: optimiser state", states.optimizer),
    ]
    if setup.sharding == "none" and setup.gpus > 1:
        items.append(Item.always("DDP: gradient buckets", states.gradients))
    at_once = min(states.part, _SUB_GROUP) if setup.sharding == "zero3" else states.part
    flat = 4 * at_once if setup.by_deepspeed and not setup.optimizer_offload else 0
    temporary = (flat or states.gradients) if copies and not setup.optimizer_offload else 0
    items.append(Item("update: temporary copies", update=flat + temporary))
    return items


def _teacher(setup: Setup) -> list[Item]:
    """The frozen model, its forward, and the hidden states [N, H'] that the loss reads."""
    if (teacher := setup.teacher) is None:
        return []
    parameters = parameters_of(teacher)
    itemsize, width = parameters[0].itemsize, teacher.config.hidden_size
    head = width * teacher.config.vocab_size * itemsize
    hidden = setup.targets * width * itemsize
    if setup.teacher_head_only:
        return [Item.always("teacher: head", head), Item("teacher: hidden states", 0, 0, hidden, 0, 0)]
    forward = inference_peak(teacher, setup.sequences, None, frozen=True) + hidden
    whole = sum(parameter.numel for parameter in parameters) * itemsize
    if setup.sharded:
        elements = 0 if setup.teacher_offload else sum(_elements(parameter, setup) for parameter in parameters)
        shards = elements * itemsize
        gathered = _gathered(setup, parameters, teacher.layers)
        weights = Item("teacher: weights", shards, shards + gathered, shards + head, shards, shards)
    elif setup.teacher_offload:
        weights = Item("teacher: weights", head, whole, head, head, head)
        hidden *= setup.accumulation  # of the whole window: the backbone visits once
        forward += hidden
    else:
        weights = Item.always("teacher: weights", whole)
    kept = hidden if setup.teacher_offload and not setup.sharded else 0
    return [weights, Item("teacher: forward, hidden states", 0, forward, hidden, kept, 0)]


def _gathered(setup: Setup, parameters: tuple[Parameter, ...], layers: int) -> int:
    """Bytes that are whole while layers run: DeepSpeed's limit, or FSDP2's two layers, embedding and head."""
    total = sum(parameter.numel * parameter.itemsize for parameter in parameters)
    if setup.sharding == "zero3":
        elements = sum(parameter.numel for parameter in parameters)
        return ceil(total * min(1, setup.max_live / elements))
    outside = sum(parameter.numel * parameter.itemsize for parameter in parameters if parameter.in_embedding)
    return outside + 2 * ceil((total - outside) / layers)


def _activations(setup: Setup) -> list[Item]:
    """The student's own, and what the fused loss allocates."""
    student, config = setup.computed_in, setup.student.config
    counted = training_activations(student, setup.sequences, setup.autocast, setup.checkpointing)
    embedding = next(parameter for parameter in parameters_of(student) if parameter.in_embedding)
    itemsize = 2 if setup.half else embedding.itemsize  # of the matrix products
    head, vocabulary = config.vocab_size * config.hidden_size, _shared_vocabulary(setup)
    rows = max(1, min(setup.targets, BUFFER_BYTES["cuda"] // (4 * vocabulary)))
    chunks = 4 * vocabulary * (2 * rows + 2 * ceil(rows / BLOCKS_PER_CHUNK))
    if embedding.trained:  # its gradient in float32, then that and its rounded copy
        chunks = 4 * head + max(chunks, itemsize * head)
        chunks += itemsize * head if setup.autocast and embedding.itemsize > itemsize else 0
    states = 2 * setup.targets * config.hidden_size * itemsize  # the hidden states that are read, and their gradient
    last = embedding.numel * embedding.itemsize if embedding.trained else 0  # the last gradient of all
    return [
        Item("student: activations", loss=counted.at_loss, backward=max(counted.backward, last)),
        Item("loss: logit chunks, head gradient", loss=max(chunks + states, counted.forward - counted.at_loss)),
    ]


def _shared_vocabulary(setup: Setup) -> int:
    """Vocabulary entries that both models score; a server's are the student's."""
    return min(model.config.vocab_size for model in (setup.student, setup.teacher) if model)


def _sharding_buffers(setup: Setup) -> list[Item]:
    """What travels between GPUs: buckets of gradients, gathered weights."""
    if setup.sharding in ("none", "zero0"):
        return []
    parameters = parameters_of(setup.computed_in)
    itemsize = parameters[0].itemsize
    largest = max(parameter.numel for parameter in parameters if parameter.trained)
    if setup.sharding == "fsdp2":
        gathered = _gathered(setup, parameters, setup.student.layers)
        reduced = 0 if setup.student.lora else gathered
        return [Item("FSDP2: gathered layers, their gradients", loss=gathered, backward=gathered + reduced)]
    bucket = setup.reduce_bucket or setup.student.config.hidden_size**2
    oversized = largest if largest > bucket and setup.sharding != "zero1" else 0
    if setup.sharding == "zero3":
        gathered = _gathered(setup, parameters, setup.student.layers)
        resident = bucket * itemsize
        backward = resident + gathered + oversized * itemsize
        return [Item("ZeRO: bucket, gathered weights", resident, resident, resident + gathered, backward, resident)]
    buckets = bucket * (2 if setup.overlap_comm else 1)
    return [Item("ZeRO: gradient buckets", backward=(buckets + oversized) * itemsize)]


def _sampling(setup: Setup) -> tuple[list[Item], int | None]:
    """The sampler, and for vLLM how many tokens its cache holds."""
    student, parameters = setup.student, parameters_of(setup.student)
    total = sum(parameter.numel for parameter in parameters)
    itemsize = 2 if setup.half else parameters[0].itemsize
    if setup.sampler == "vllm":
        share = int(setup.vllm_share * setup.gpu_bytes)
        base = sum(parameter.numel for parameter in parameters if not (student.lora and parameter.trained))
        room = share - base * setup.vllm_itemsize // setup.vllm_parallel - VLLM_WORKING_BYTES
        cache = max(0, room) * setup.vllm_parallel * 2 // (student.cache_bytes_per_token * setup.vllm_itemsize)
        largest = max(parameter.numel for parameter in parameters)
        per_element = (8 if student.lora else 0) + (itemsize if setup.sharded or student.lora else 0)
        return [
            Item("vLLM: weights, cache; asleep (assumed)", share, *[VLLM_ASLEEP_BYTES] * 4),
            Item("vLLM: weight on its way", largest * per_element),
        ], cache
    rows = min(setup.sampler_rows, setup.prompts * setup.generations * setup.accumulation)
    length = setup.prompt_tokens + setup.completion_tokens
    cache_bytes = rows * length * student.cache_bytes_per_token * itemsize // 2
    prefill = inference_peak(setup.computed_in, (setup.prompt_tokens,) * rows, setup.autocast, frozen=False)
    drawing = rows * student.config.vocab_size * _DRAWING_BYTES
    first = parameters_of(setup.kept_as)[0]  # the copy has its type
    copy = total * _itemsize(first, setup) if setup.sharded else 0
    return [
        Item("sampling: whole copy of the student", copy),
        Item("sampling: cache, prefill, logits", cache_bytes + prefill + drawing),
    ], None
