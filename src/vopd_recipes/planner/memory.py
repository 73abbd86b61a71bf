"""What a recipe needs on each GPU, computed before any weight is loaded.

Four sums, of which the largest must fit (P parameters, N processes, b bytes per element):

    weights     bP on each GPU, or sharded under ZeRO-3 and FSDP2
    gradients   bP of what is trained; sharded from ZeRO-2 on; twice with DDP's buckets; in float32 under ZeRO,
                where its configuration says so, as ours do
    optimiser   Adam's two moments in the type of the weights; under ZeRO in float32, with a float32 copy: 12 P/N
    activations counted by `activations`; a logit chunk and the head's gradient as `fused` allocates them

The first three are exact (`states`); activations are those of rows in which every completion is as long as it may be.

1 GB is 10⁹ bytes. An "80 GB" card has 85·10⁹: the difference is for fragmentation, and for vLLM, whose share is of the
real card: at 0.3 of it, 1.5 GB more than is said here, which its cache has as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from vopd_recipes.loss import BLOCKS_PER_CHUNK, BUFFER_BYTES
from vopd_recipes.planner.activations import inference_peak, training_activations
from vopd_recipes.planner.architectures import parameters_of
from vopd_recipes.planner.items import PHASES, Item, gathered
from vopd_recipes.planner.states import OPTIMIZERS, SUB_GROUP, Setup, itemsize_of, training_states
from vopd_recipes.planner.teachers import teacher_items

GB = 10**9

# Assumed, not computed: the CUDA context with cuBLAS and NCCL workspaces; what vLLM keeps of its own while it sleeps
# (CUDA graphs, communicators); what it needs besides weights and cache while it samples.
CONTEXT_BYTES = 2 * GB
VLLM_ASLEEP_BYTES = 1 * GB
VLLM_WORKING_BYTES = 2 * GB
# Of a block's size, in the code that torch 2.13 compiles for the method that has most of them (rao_blackwell_optimal).
_COMPILED_BUFFERS = 8
# float32 logits, their log-softmax, and probabilities and their sum in float64, per vocabulary entry of a drawn row.
_DRAWING_BYTES = 30


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
        waiting = [one.teacher for one in setup.of_each_teacher if one.teacher_offload and not one.own_base]
        parameters = [parameter for teacher in waiting if teacher for parameter in parameters_of(teacher)]
        sizes = [parameter.numel * parameter.itemsize for parameter in parameters]
        if setup.sharded:
            return optimizer + ceil(sum(sizes) / setup.gpus)
        return optimizer + sum(1 << (size - 1).bit_length() for size in sizes)  # PyTorch pins powers of two

    @property
    def fits(self) -> bool:
        """Whether every phase has the memory it needs."""
        return self.peak <= self.setup.gpu_bytes and not self.starved


def plan(setup: Setup) -> Plan:
    """Every item of every phase.

    Raises:
        RecipeError: a model whose configuration cannot be had.
    """
    sampling, cache_tokens = _sampling(setup)
    items = [
        *_states(setup),
        *teacher_items(setup),
        *_activations(setup),
        *_sharding_buffers(setup),
        *sampling,
        Item.always("CUDA context, workspaces (assumed)", CONTEXT_BYTES),
    ]
    return Plan(setup, tuple(item for item in items if any(getattr(item, phase) for phase in PHASES)), cache_tokens)


def _states(setup: Setup) -> list[Item]:
    states, (_, copies) = training_states(setup), OPTIMIZERS[setup.optim]
    resident = setup.sharding == "zero3"  # its gradients have a buffer that stays
    before = states.gradients if resident or not setup.teacher_offload else 0
    items = [
        Item.always("student: weights", states.weights),
        Item("student: gradients", states.gradients if resident else 0, before, *[states.gradients] * 3),
        Item.always("student: optimiser state", states.optimizer),
    ]
    if setup.sharding == "none" and setup.gpus > 1:
        items.append(Item.always("DDP: gradient buckets", states.gradients))
    at_once = min(states.part, SUB_GROUP) if setup.sharding == "zero3" else states.part
    as_is = setup.sharding == "zero2" and setup.widens_gradients  # one float32 tensor already
    flat = 4 * at_once if setup.by_deepspeed and not setup.optimizer_offload and not as_is else 0
    temporary = (flat or states.gradients) if copies and not setup.optimizer_offload else 0
    items.append(Item("update: temporary copies", update=flat + temporary))
    return items


def _activations(setup: Setup) -> list[Item]:
    """The student's own, and what the fused loss allocates."""
    student, config = setup.computed_in, setup.student.config
    counted = training_activations(student, setup.sequences, setup.autocast, setup.checkpointing)
    embedding = next(parameter for parameter in parameters_of(student) if parameter.in_embedding)
    itemsize = 2 if setup.half else embedding.itemsize  # of the matrix products
    head, vocabulary = config.vocab_size * config.hidden_size, _shared_vocabulary(setup)
    rows = max(1, min(setup.targets, BUFFER_BYTES["cuda"] // (4 * vocabulary)))
    buffers = _COMPILED_BUFFERS if setup.loss_compile else 2
    chunks = 4 * vocabulary * (2 * rows + buffers * ceil(rows / BLOCKS_PER_CHUNK["cuda"]))
    if itemsize == 2:  # the logits' gradient, for the products
        chunks += 2 * vocabulary * rows
    if embedding.trained:  # its gradient in float32, then that and its rounded copy
        chunks = 4 * head * setup.mixed_teachers + max(chunks, itemsize * head)
        chunks += itemsize * head if setup.autocast and embedding.itemsize > itemsize else 0
    states = 2 * setup.targets * config.hidden_size * itemsize  # the hidden states that are read, and their gradient
    last = embedding.numel * embedding.itemsize if embedding.trained else 0  # the last gradient of all
    return [
        Item("student: activations", loss=counted.at_loss, backward=max(counted.backward, last)),
        Item("loss: logit chunks, head gradient", loss=max(chunks + states, counted.forward - counted.at_loss)),
    ]


def _shared_vocabulary(setup: Setup) -> int:
    """Vocabulary entries that student and teacher score, of the largest share; a server's are the student's."""
    own = setup.student.config.vocab_size
    return max(min(own, one.teacher.config.vocab_size) if one.teacher else own for one in setup.of_each_teacher)


def _sharding_buffers(setup: Setup) -> list[Item]:
    """What travels between GPUs: buckets of gradients, gathered weights."""
    if setup.sharding in ("none", "zero0"):
        return []
    parameters = parameters_of(setup.computed_in)
    itemsize = parameters[0].itemsize
    largest = max(parameter.numel for parameter in parameters if parameter.trained)
    if setup.sharding == "fsdp2":
        whole = gathered(setup, parameters, setup.student.layers)
        reduced = 0 if setup.student.lora else whole
        return [Item("FSDP2: gathered layers, their gradients", loss=whole, backward=whole + reduced)]
    bucket = setup.reduce_bucket or setup.student.config.hidden_size**2
    oversized = largest if largest > bucket and setup.sharding != "zero1" else 0
    if setup.sharding == "zero3":
        whole = gathered(setup, parameters, setup.student.layers)
        resident = bucket * itemsize
        backward = resident + whole + oversized * itemsize
        return [Item("ZeRO: bucket, gathered weights", resident, resident, resident + whole, backward, resident)]
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
    window = setup.prompts * setup.generations * setup.accumulation
    rows = min(setup.sampler_rows, max(window, setup.held_out_rows))
    length = setup.prompt_tokens + setup.completion_tokens
    cache_bytes = rows * length * student.cache_bytes_per_token * itemsize // 2
    prefill = inference_peak(setup.computed_in, (setup.prompt_tokens,) * rows, setup.autocast, frozen=False)
    drawing = rows * student.config.vocab_size * _DRAWING_BYTES
    first = parameters_of(setup.kept_as)[0]  # the copy has its type
    copy = total * itemsize_of(first, setup) if setup.sharded else 0
    return [
        Item("sampling: whole copy of the student", copy),
        Item("sampling: cache, prefill, logits", cache_bytes + prefill + drawing),
    ], None
