"""A recipe becomes typed dataclasses, checked before anything is loaded.

A recipe is one flat YAML file, read by `load`. Its fields are those of `ModelConfig`, `DataConfig` and `VOPDConfig`;
the last is a `transformers.TrainingArguments`: whoever knows the ecosystem knows the names. `extends: other.yaml`
makes a variant three lines long, `--field value` on the command line overrides both. Whatever is wrong — an unknown
field, a value of the wrong type, two values that contradict each other — becomes one `RecipeError` that says what,
where (file and line, or flag) and what to do, before a model or a data set is touched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from vopd_recipes.loss import Estimator, Needs, baselines, default_baseline, divergences
from vopd_recipes.recipe.checks import (
    check_backends,
    check_best_metric,
    check_publishing,
    check_sampling,
    check_schedule,
    check_trackers,
    check_values,
    require,
)
from vopd_recipes.recipe.launch import add_up_in_float32, introduce_deepspeed, prepare_launch
from vopd_recipes.recipe.teachers import OF_BACKEND, of_teacher, read_teachers
from vopd_recipes.recipe.text import Word, describe_type, nearest


def option(default: Any, help: str) -> Any:
    """A dataclass field with its one-line description."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


_DTYPE = Literal["float32", "bfloat16", "float16"]


@dataclass
class ModelConfig:
    """The student, the teacher, and what of the student is trained."""

    model_name_or_path: str | None = option(None, "student: Hub id or folder")
    model_revision: str | None = option(None, "branch, tag or commit of the student")
    teacher_model_name_or_path: str | None = option(None, "teacher: Hub id or folder")
    teacher_model_revision: str | None = option(None, "branch, tag or commit of the teacher")
    eos_token: str | None = option(None, "also ends a completion, and from then on the student: the teacher's, say")
    dtype: _DTYPE = option("float32", "type of the student's weights")
    teacher_dtype: _DTYPE | None = option(None, "the teacher's; default: bfloat16 with bf16, else dtype")
    attn_implementation: str | None = option(
        None, "default: flash-attention where installed, else packed_sdpa, or eager where sdpa is not the model"
    )
    trust_remote_code: bool = option(False, "run model code that comes with the weights")
    dropout: bool = option(False, "keep the dropout of the student's configuration, which its sampler lacks")
    use_peft: bool = option(False, "train LoRA adapters instead of all weights")
    lora_r: int = option(64, "rank of the adapters")
    lora_alpha: int = option(128, "their scale is lora_alpha / lora_r")
    lora_dropout: float = option(0.0, "dropout on the adapters' input, which the sampler lacks")
    lora_target_modules: list[str] | str = option("all-linear", "module names, or all-linear")

    def __post_init__(self) -> None:
        require(bool(self.model_name_or_path), "model_name_or_path: missing; name a Hub id or a folder")
        require(self.lora_r >= 1, f"lora_r must be at least 1, got {self.lora_r}")
        require(self.lora_alpha >= 1, f"lora_alpha must be at least 1, got {self.lora_alpha}")
        require(0 <= self.lora_dropout < 1, f"lora_dropout must lie in [0, 1), got {self.lora_dropout}")

    @property
    def teacher_is_base(self) -> bool:
        """Whether the names say that the teacher is what is under the student's adapters."""
        teacher = self.teacher_model_name_or_path, self.teacher_model_revision, self.teacher_dtype or self.dtype
        return self.use_peft and teacher == (self.model_name_or_path, self.model_revision, self.dtype)


@dataclass
class DataConfig:
    """Prompts, their answers where they have one, and how they become tokens."""

    dataset_name: str | None = option(None, "Hub id, json/jsonl/parquet file, or saved data set folder")
    dataset_config: str | None = option(None, "configuration of a Hub data set")
    dataset_train_split: str = option("train", "split to train on")
    dataset_test_split: str | None = option(None, "split of held-out prompts")
    test_size: int = option(0, "without dataset_test_split: hold this many training rows out")
    max_test_prompts: int | None = option(None, "evaluate on at most this many held-out prompts")
    dataset_mixture: list[dict[str, Any]] | None = option(
        None, "instead of dataset_name: entries with the fields above and below plus weight (1.0 = every row once)"
    )
    prompt_column: str = option("prompt", "column of a string, or of a list of chat messages")
    answer_column: str | None = option(None, "column of the gold answer, for held-out accuracy")
    answer_format: Literal["math", "choice"] = option("math", "how an answer is graded")
    prompt_template: str | None = option(None, "text in which {column} stands for that column's value")
    chat_template: bool = option(False, "wrap prompts in the tokenizer's chat template")
    chat_template_kwargs: dict[str, Any] = option({}, "passed to the chat template, e.g. {enable_thinking: false}")
    continue_final_message: bool = option(False, "go on with a last message that is the assistant's")
    max_prompt_length: int = option(1024, "longer prompts are dropped and counted, in tokens")
    teacher_column: str | None = option(None, "column that names each prompt's teacher, of teachers")
    teacher_prompt_template: str | None = option(
        None, "what the teacher reads in the prompt's place, with any {column}; rollouts never see it"
    )
    teacher_system_prompt: str | None = option(None, "a system message for the teacher alone, with any {column}")
    teacher_chat_template: bool | None = option(None, "as chat_template, for the teacher's prompt; default: the same")
    teacher_max_prompt_length: int | None = option(None, "of the teacher's prompts; default: max_prompt_length")

    def __post_init__(self) -> None:
        require(
            bool(self.dataset_name) != bool(self.dataset_mixture),
            "dataset_name, dataset_mixture: name exactly one of them",
        )
        require(self.max_prompt_length >= 1, f"max_prompt_length must be at least 1, got {self.max_prompt_length}")
        require(self.test_size >= 0, f"test_size must not be negative, got {self.test_size}")
        require(
            self.max_test_prompts is None or self.max_test_prompts >= 1,
            f"max_test_prompts must be at least 1, got {self.max_test_prompts}",
        )
        require(
            not (self.test_size and self.dataset_test_split),
            "test_size, dataset_test_split: both name held-out prompts; keep one",
        )
        require(
            not self.chat_template_kwargs or self.chat_template,
            "chat_template_kwargs has no effect with chat_template: false",
        )
        require(
            not self.continue_final_message or self.chat_template,
            "continue_final_message has no effect with chat_template: false",
        )
        for source in self.dataset_mixture or []:
            self._check_source(source)
        for source in self.sources():
            self._check_held_out(source["dataset_train_split"], source["dataset_name"])
        self._check_teacher_prompts()

    def _check_teacher_prompts(self) -> None:
        length = self.teacher_max_prompt_length
        require(length is None or length >= 1, f"teacher_max_prompt_length must be at least 1, got {length}")
        given = [
            name for name in ("teacher_chat_template", "teacher_max_prompt_length") if getattr(self, name) is not None
        ]
        require(
            self.privileged or not given,
            f"{' and '.join(given)}: no effect without teacher_prompt_template or teacher_system_prompt",
        )
        system = any(source["teacher_system_prompt"] for source in self.sources())
        require(
            not system or self.teacher_reads_chat,
            "teacher_system_prompt is a message of a chat; set teacher_chat_template: true",
        )

    @property
    def privileged(self) -> bool:
        """Whether the teacher reads other prompts than the student."""
        return any(source["teacher_prompt_template"] or source["teacher_system_prompt"] for source in self.sources())

    @property
    def teacher_reads_chat(self) -> bool:
        """Whether prompts of its own are wrapped in the chat template."""
        return self.chat_template if self.teacher_chat_template is None else self.teacher_chat_template

    def _check_source(self, source: dict[str, Any]) -> None:
        known = [*_MIXTURE_FIELDS, "weight", "teacher"]
        for name, value in source.items():
            require(name in known, f"dataset_mixture: unknown field '{name}'{nearest(str(name), known)}")
            absent = value is None and getattr(DataConfig, name, None) is None  # null is what it is without an entry
            require(
                name == "weight" or absent or isinstance(value, str),
                f"dataset_mixture: {name} must be text, got {value!r}",
            )
        require(bool(source.get("dataset_name")), "dataset_mixture: an entry has no dataset_name")
        weight = source.get("weight", 1.0)
        require(
            isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < math.inf,
            f"dataset_mixture: weight must be a positive number, got {weight!r}",
        )

    def _check_held_out(self, train: str, name: str) -> None:
        """The held-out split is not the one that is trained on, nor part of it as train[:10%] is of train."""
        test, whole = self.dataset_test_split, train.partition("[")[0]
        if test and test.partition("[")[0] == whole:
            require(
                test != train and whole not in (test, train),
                f"dataset_test_split: {test} holds rows of {name} that dataset_train_split: {train} trains on; name "
                "another, or set test_size in its place",
            )

    def sources(self) -> list[dict[str, Any]]:
        """Every data set to read: fields of `_MIXTURE_FIELDS` plus weight and teacher, defaults filled in."""
        defaults = {name: getattr(self, name) for name in _MIXTURE_FIELDS}
        return [{**defaults, "weight": 1.0, "teacher": None, **source} for source in self.dataset_mixture or [{}]]


_MIXTURE_FIELDS = (
    "dataset_name", "dataset_config", "dataset_train_split", "prompt_column", "answer_column", "prompt_template",
    "teacher_prompt_template", "teacher_system_prompt",
)  # fmt: skip


@dataclass
class VOPDConfig(TrainingArguments):
    """Estimator, sampling and rollouts, on top of every field of `transformers.TrainingArguments`."""

    divergence: Word = option("sampled", f"one of {', '.join(divergences())}")
    baseline: Word | None = option(
        None, f"of a sampled reward: {', '.join(baselines())}; default: value, and optimal or tail of rao_blackwell"
    )
    support: Literal["student", "teacher"] = option("student", "whose top k")
    support_top_k: int = option(20, "k of rao_blackwell, value_topk and topk")
    baseline_constant: float = option(1.0, "value of baseline: constant")
    jsd_beta: float = option(0.5, "β of divergence: jsd")
    reward_clip_lambda: float | None = option(None, "clamp sampled rewards from below at log(λ)/(1-λ)")
    importance_sampling_cap: float = option(2.0, "truncate p_train/p_rollout at this")

    max_completion_length: int = option(2048, "max new tokens of a completion")
    num_generations: int = option(1, "completions per prompt")
    num_generations_eval: int = option(1, "completions per held-out prompt: more of them, a finer measure")
    temperature: float = option(1.0, "anything but 1 needs allow_biased_sampling")
    top_p: float = option(1.0, "anything but 1 needs allow_biased_sampling")
    top_k: int = option(0, "0 is off; anything else needs allow_biased_sampling")
    allow_biased_sampling: bool = option(False, "sample from another distribution than the student's")
    mask_truncated_completions: bool = option(False, "do not train on truncated completions")
    rollout_backend: Literal["transformers", "vllm"] = option("transformers", "what samples the completions")
    rollout_batch_size: int = option(64, "completions sampled at a time on a device")
    vllm_gpu_memory_utilization: float = option(0.3, "share of the GPU's memory that vLLM may fill while it samples")
    vllm_tensor_parallel_size: int = option(1, "neighbouring processes that share one vLLM engine")
    vllm_max_model_len: int | None = option(None, "default: the longest prompt + max_completion_length")
    vllm_dtype: _DTYPE | None = option(None, "type of vLLM's weights; default: what training multiplies in")
    vllm_enforce_eager: bool | None = option(None, "no CUDA graphs: starts sooner, samples slower; default: on a CPU")
    teachers: dict[str, Any] | None = option(
        None,
        "instead of one: name → teacher fields; dataset_mixture's teacher or teacher_column says whose a prompt is",
    )
    teacher_backend: Literal["local", "server"] = option("local", "local, or a vLLM server that scores completions")
    teacher_offload: bool = option(False, "keep a local teacher in CPU memory between its turns")
    teacher_server_url: str | None = option(None, "of teacher_backend: server, such as http://node7:8000")
    teacher_server_scores: Literal["logprobs", "hidden_states"] = option(
        "logprobs", "k log-probabilities a token, or hidden states, which make every estimator exact"
    )
    teacher_server_model: str | None = option(None, "name of the model there; default: the only one")
    teacher_server_timeout: float = option(600.0, "seconds to keep trying before the run stops, resumable")
    log_gradient_variance: bool = option(False, "log every estimator's exact gradient variance")
    loss_compile: bool = option(False, "compile the loss's elementwise part: fewer passes over logits, a slow start")
    resume_only_model: bool = option(False, "resume from a checkpoint without its optimiser: moments start anew")
    hub_merge: bool = option(False, "push_to_hub of LoRA runs: the merged model too, to <hub_model_id>-merged")

    # Other defaults than the Trainer's, from the paper's settings where it states one.
    learning_rate: float = option(1e-5, "peak learning rate (paper, Table 4)")
    lr_scheduler_type: SchedulerType | str = option("cosine", "learning-rate schedule (paper, Table 4)")
    num_train_epochs: float = option(1.0, "passes over the prompts")
    per_device_train_batch_size: int = option(1, "prompts per device and micro-batch")
    logging_steps: float = option(1, "steps between log lines")
    save_steps: float = option(20, "steps between checkpoints (paper)")
    logging_nan_inf_filter: bool = option(False, "a non-finite loss stops the run instead")
    ddp_find_unused_parameters: bool | None = option(False, "every trained weight has a gradient in every micro-batch")
    remove_unused_columns: bool = option(False, "prompts carry their own columns")

    def __post_init__(self) -> None:
        check_values(self)
        if self.teachers is not None:
            self.teachers = read_teachers(self.teachers, HINTS)
        if self.baseline is None:
            known: Needs = "support" if self.knows_logprobs_only else "distribution"
            self.baseline = cast(Word, default_baseline(self.divergence, known))
        self.baseline = cast(Word, self.estimator.baseline)
        check_sampling(self)
        check_trackers(self)
        for name, one in self.by_teacher().items():
            with of_teacher(name):
                check_backends(one, self.estimator)
        check_publishing(self)
        check_best_metric(self)
        prepare_launch(self)
        super().__post_init__()
        check_schedule(self)
        batches: Any = self.accelerator_config
        require(
            not (batches.split_batches or batches.dispatch_batches) and batches.even_batches,
            "accelerator_config: split_batches, dispatch_batches and even_batches: false deal prompts out in an order "
            "that is not ours",
        )
        require(
            batches.use_seedable_sampler,
            "accelerator_config: use_seedable_sampler: false shuffles by a state that a resumed run does not have",
        )
        introduce_deepspeed(self)
        add_up_in_float32(self)

    @property
    def knows_logprobs_only(self) -> bool:
        """Whether a teacher gives log-probabilities of some tokens and not its whole distribution."""
        return any(
            one.teacher_backend == "server" and one.teacher_server_scores == "logprobs"
            for one in self.by_teacher().values()
        )

    @property
    def evaluates(self) -> bool:
        """Whether a run looks at held-out prompts."""
        return self.eval_strategy != "no" or self.eval_on_start

    def by_teacher(self) -> dict[str | None, VOPDConfig]:
        """These fields as each teacher has them, who is then the only one; one without a name is `None`."""
        if self.teachers is None:
            return {None: self}
        backends = {name: entry.get("teacher_backend", self.teacher_backend) for name, entry in self.teachers.items()}
        found: dict[str | None, VOPDConfig] = {}
        for name, entry in self.teachers.items():
            found[name] = copy.copy(self)
            # meant for the teachers of the other kind, where there are any
            others = [field for field, of in OF_BACKEND.items() if of != backends[name] and of in backends.values()]
            own = {field: getattr(VOPDConfig, field) for field in others} | entry
            vars(found[name]).update({"teachers": None, **{key: own[key] for key in own if key in vars(self)}})
        return found

    @property
    def estimator(self) -> Estimator:
        """The estimator these fields describe."""
        return Estimator(**{item.name: getattr(self, item.name) for item in fields(Estimator)})


@dataclass(frozen=True)
class Recipe:
    """A checked recipe and where each of its values came from (`file:line`, `--flag`; absent: the default)."""

    path: Path
    model: ModelConfig
    data: DataConfig
    training: VOPDConfig
    sources: dict[str, str]

    def by_teacher(self) -> dict[str | None, Recipe]:
        """This recipe as each of its teachers has it, who is then the only one; one without a name is `None`."""
        found = {}
        for name, training in self.training.by_teacher().items():
            entry = (self.training.teachers or {}).get(str(name), {})
            model = replace(self.model, **{key: value for key, value in entry.items() if hasattr(self.model, key)})
            if training.bf16 and model.teacher_dtype is None and not model.teacher_is_base:  # in one copy, of one type
                model = replace(model, teacher_dtype="bfloat16")
            found[name] = replace(self, model=model, training=training)
        return found

    def resolved(self) -> dict[str, Any]:
        """Every field of ours and every inherited one that the recipe sets, as plain values that load again."""
        values = {}
        for part in (self.model, self.data, self.training):
            for item in fields(part):
                if item.name in _FIELDS and (item.name in _OWN or item.name in self.sources):
                    values[item.name] = _plain(getattr(part, item.name))
        return values


def _plain(value: Any) -> Any:
    """What YAML can hold: the Trainer turns some fields into enums and configuration objects."""
    if isinstance(value, Enum):
        return value.value
    return value.to_dict() if hasattr(value, "to_dict") else value


PARTS = (ModelConfig, DataConfig, VOPDConfig)
_FIELDS = {item.name: item for part in PARTS for item in fields(part) if item.init}
HINTS = {name: hint for part in PARTS for name, hint in get_type_hints(part).items() if name in _FIELDS}
_OWN = {name: None for part in PARTS for name in part.__annotations__}  # in order of declaration


def describe_fields() -> Iterator[tuple[str, str, Any]]:
    """(name, description with what it may hold where the default does not show it, default) of each field of ours."""
    for name in _OWN:
        item = _FIELDS[name]
        default = item.default_factory() if callable(item.default_factory) else item.default
        allowed = describe_type(HINTS[name]).removesuffix(" or null")
        told = not allowed.startswith("one of ") and (default is not None or allowed in ("text", "a word"))
        yield name, item.metadata["help"] if told else f"{item.metadata['help']}; {allowed}", default
