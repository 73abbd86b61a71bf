"""A recipe becomes typed dataclasses, checked before anything is loaded.

A recipe is one flat YAML file. Its fields are those of `ModelConfig`, `DataConfig` and `VOPDConfig`, and the last
one is a `transformers.TrainingArguments`: whoever knows the ecosystem knows the names. `extends: other.yaml` makes a
variant three lines long, `--field value` on the command line overrides both. Whatever is wrong — an unknown field, a
value of the wrong type, two values that contradict each other — becomes one `RecipeError` that says what, where (file
and line, or flag) and what to do, before a model or a data set is touched.

Plain argparse over the dataclasses was dropped: it knows neither the line of a YAML value nor its nearest name, and
passes `1e-5`, which YAML reads as a string, on as one.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType

from vopd_recipes.estimators import Estimator


class RecipeError(ValueError):
    """One line for the person at the terminal: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # values and other people's messages come with line breaks


def option(default: Any, help: str) -> Any:
    """A dataclass field with its one-line description."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelConfig:
    """The student, the teacher, and what of the student is trained."""

    model_name_or_path: str | None = option(None, "student: Hub id or folder")
    model_revision: str | None = option(None, "branch, tag or commit of the student")
    teacher_model_name_or_path: str | None = option(None, "teacher: Hub id or folder")
    teacher_model_revision: str | None = option(None, "branch, tag or commit of the teacher")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "type of the student's weights")
    teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = option(None, "the teacher's; default: dtype")
    attn_implementation: str | None = option(None, "default: flash-attention where installed, else packed_sdpa")
    trust_remote_code: bool = option(False, "run model code that comes with the weights")
    use_peft: bool = option(False, "train LoRA adapters instead of all weights")
    lora_r: int = option(64, "rank of the adapters")
    lora_alpha: int = option(128, "their scale is lora_alpha / lora_r")
    lora_dropout: float = option(0.0, "dropout on the adapters' input")
    lora_target_modules: list[str] | str = option("all-linear", "module names, or all-linear")

    def __post_init__(self) -> None:
        for name in ("model_name_or_path", "teacher_model_name_or_path"):
            if not getattr(self, name):
                raise ValueError(f"{name}: missing; name a Hub id or a folder")
        _require(self.lora_r >= 1, f"lora_r must be at least 1, got {self.lora_r}")
        _require(0 <= self.lora_dropout < 1, f"lora_dropout must lie in [0, 1), got {self.lora_dropout}")


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
    max_prompt_length: int = option(1024, "longer prompts are dropped and counted, in tokens")

    def __post_init__(self) -> None:
        _require(
            bool(self.dataset_name) != bool(self.dataset_mixture),
            "dataset_name, dataset_mixture: name exactly one of them",
        )
        _require(self.max_prompt_length >= 1, f"max_prompt_length must be at least 1, got {self.max_prompt_length}")
        _require(self.test_size >= 0, f"test_size must not be negative, got {self.test_size}")
        _require(
            self.max_test_prompts is None or self.max_test_prompts >= 1,
            f"max_test_prompts must be at least 1, got {self.max_test_prompts}",
        )
        _require(
            not (self.test_size and self.dataset_test_split),
            "test_size, dataset_test_split: both name held-out prompts; keep one",
        )
        _require(
            not self.chat_template_kwargs or self.chat_template,
            "chat_template_kwargs has no effect with chat_template: false",
        )
        for source in self.dataset_mixture or []:
            self._check_source(source)

    def _check_source(self, source: dict[str, Any]) -> None:
        known = [*_MIXTURE_FIELDS, "weight"]
        for name, value in source.items():
            _require(name in known, f"dataset_mixture: unknown field '{name}'{_nearest(str(name), known)}")
            _require(
                name == "weight" or value is None or isinstance(value, str),
                f"dataset_mixture: {name} must be text, got {value!r}",
            )
        _require("dataset_name" in source, "dataset_mixture: an entry has no dataset_name")
        weight = source.get("weight", 1.0)
        _require(
            isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < math.inf,
            f"dataset_mixture: weight must be a positive number, got {weight!r}",
        )

    def sources(self) -> list[dict[str, Any]]:
        """Every data set to read: fields of `_MIXTURE_FIELDS` plus weight, defaults filled in."""
        defaults = {name: getattr(self, name) for name in _MIXTURE_FIELDS}
        return [{**defaults, "weight": 1.0, **source} for source in self.dataset_mixture or [{}]]


_MIXTURE_FIELDS = (
    "dataset_name", "dataset_config", "dataset_train_split", "prompt_column", "answer_column", "prompt_template"
)  # fmt: skip

# Fields of TrainingArguments that would be ignored here or would silently change what is trained.
_UNSUPPORTED = {
    "hub_token": "a recipe is published with the run; log in with `hf auth login` or set HF_TOKEN",
    "label_smoothing_factor": "there are no labels to smooth",
    "neftune_noise_alpha": "noise in the student's embeddings makes its samples off-policy",
    "auto_find_batch_size": "a micro-batch is packed by tokens; lower per_device_train_batch_size instead",
    "load_best_model_at_end": "every checkpoint is kept by step; pick one with the evaluation results",
    "ignore_data_skip": "a resumed run repeats the undisturbed one",
}


_COUNTS = (
    "max_completion_length", "num_generations", "rollout_batch_size", "gradient_accumulation_steps",
    "per_device_train_batch_size", "per_device_eval_batch_size", "eval_steps", "save_total_limit",
)  # fmt: skip
_TRACKERS = (*INTEGRATION_TO_CALLBACK, "none", "all")


@dataclass
class VOPDConfig(TrainingArguments):
    """Estimator, sampling and rollouts, on top of every field of `transformers.TrainingArguments`."""

    divergence: Literal["sampled", "full", "topk"] = option("sampled", "policy gradient, exact KL, or top-k KL")
    baseline: Literal["none", "constant", "value", "value_topk", "optimal"] | None = option(
        None, "control variate of divergence: sampled; default: value"
    )
    baseline_support: Literal["student", "teacher"] = option("student", "whose top k carry value_topk")
    support_top_k: int = option(20, "k of value_topk and topk")
    baseline_constant: float = option(1.0, "value of baseline: constant")
    reward_clip_lambda: float | None = option(None, "clamp rewards from below at log λ/(1-λ)")
    importance_sampling_cap: float = option(2.0, "truncate p_train/p_rollout at this")

    max_completion_length: int = option(2048, "sample at most this many tokens")
    num_generations: int = option(1, "completions per prompt")
    temperature: float = option(1.0, "anything but 1 needs allow_biased_sampling")
    top_p: float = option(1.0, "anything but 1 needs allow_biased_sampling")
    top_k: int = option(0, "0 is off; anything else needs allow_biased_sampling")
    allow_biased_sampling: bool = option(False, "sample from another distribution than the student's")
    mask_truncated_completions: bool = option(False, "do not train on completions cut at the limit")
    rollout_backend: Literal["transformers"] = option("transformers", "what samples the completions")
    rollout_batch_size: int = option(64, "completions sampled at a time on a device")
    log_gradient_variance: bool = option(False, "log every estimator's exact gradient variance")

    # Other defaults than the Trainer's, from the paper's settings where it states one.
    learning_rate: float = option(1e-5, "peak learning rate (paper, Table 4)")
    lr_scheduler_type: SchedulerType | str = option("cosine", "learning-rate schedule (paper, Table 4)")
    num_train_epochs: float = option(1.0, "passes over the prompts")
    per_device_train_batch_size: int = option(1, "prompts per device and micro-batch")
    logging_steps: float = option(1, "steps between log lines")
    save_steps: float = option(20, "steps between checkpoints (paper)")
    logging_nan_inf_filter: bool = option(False, "a non-finite loss stops the run instead")
    remove_unused_columns: bool = option(False, "prompts carry their own columns")

    def __post_init__(self) -> None:
        _require(bool(self.output_dir), "output_dir: missing; name a folder for the run")
        defaults = {item.name: item.default for item in fields(TrainingArguments)}
        for name, reason in _UNSUPPORTED.items():
            _require(getattr(self, name) == defaults[name], f"{name} is not supported: {reason}")
        for name in _COUNTS:
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        _require(0 <= self.seed < 2**32, f"seed must lie in [0, 2^32), got {self.seed}")
        _require(
            0 <= self.learning_rate < math.inf, f"learning_rate must be finite, at least 0, got {self.learning_rate}"
        )
        _require(not self.remove_unused_columns, "remove_unused_columns: true drops columns that rollouts need")
        _require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        _require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}")
        _require(self.top_k >= 0, f"top_k must not be negative, got {self.top_k}; 0 is off")
        self._check_unbiased_sampling()
        self._check_trackers()
        self.baseline = self.estimator.baseline
        super().__post_init__()

    def _check_unbiased_sampling(self) -> None:
        for name, neutral in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0)):
            value = getattr(self, name)
            _require(
                value == neutral or self.allow_biased_sampling,
                f"{name}: {value} samples from another distribution than the student's, which biases the gradient; "
                f"use {name}: {neutral:g} or set allow_biased_sampling: true",
            )

    def _check_trackers(self) -> None:
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        for name in names:
            _require(name in _TRACKERS, f"report_to: '{name}' is no tracker{_nearest(name, _TRACKERS)}")
            _require(
                name not in ("wandb", "trackio", "tensorboard") or importlib.util.find_spec(name) is not None,
                f"report_to: {name} is not installed; pip install {name}, or report_to: none",
            )

    @property
    def estimator(self) -> Estimator:
        """The estimator these fields describe."""
        return Estimator(**{item.name: getattr(self, item.name) for item in fields(Estimator)})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe and where each of its values came from (`file:line`, `--flag`; absent: the default)."""

    path: Path
    model: ModelConfig
    data: DataConfig
    training: VOPDConfig
    sources: dict[str, str]

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


_PARTS = (ModelConfig, DataConfig, VOPDConfig)
_HINTS = {name: hint for part in _PARTS for name, hint in get_type_hints(part).items()}
_FIELDS = {item.name: item for part in _PARTS for item in fields(part) if item.init}
_OWN = {name: None for part in _PARTS for name in part.__annotations__}  # in order of declaration


def describe_fields() -> Iterator[tuple[str, str, Any]]:
    """(name, description, default) of each field that is this library's own."""
    for name in _OWN:
        item = _FIELDS[name]
        default = item.default_factory() if callable(item.default_factory) else item.default
        yield name, item.metadata["help"], default


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        path: the YAML file.
        overrides: command-line words, `--field value …`.

    Raises:
        RecipeError: anything wrong, in one line.
    """
    path = Path(path)
    values = {**_read_yaml(path, ()), **_read_flags(overrides or [])}
    checked, sources = {}, {}
    for name, (value, where) in values.items():
        if name not in _FIELDS:
            raise RecipeError(f"{where}: unknown field '{name}'{_nearest(name, _FIELDS)}")
        try:
            checked[name] = _coerce(value, _HINTS[name])
        except TypeError:
            wanted = _describe_type(_HINTS[name])
            raise RecipeError(f"{where}: {name} must be {wanted}, got {value!r}") from None
        sources[name] = where
    model, data, training = (_build(part, checked, sources, path) for part in _PARTS)
    recipe = Recipe(path, model, data, training, sources)
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """Contradictions between the parts."""
    data, training = recipe.data, recipe.training
    evaluates = training.eval_strategy != "no" or training.eval_on_start
    if evaluates and not (data.dataset_test_split or data.test_size):
        where = recipe.sources.get("eval_strategy") or recipe.sources.get("eval_on_start") or str(recipe.path)
        raise RecipeError(f"{where}: evaluation needs held-out prompts; set dataset_test_split or test_size")


def _build(part: type, checked: dict[str, Any], sources: dict[str, str], path: Path) -> Any:
    names = {item.name for item in fields(part)}
    try:
        return part(**{name: value for name, value in checked.items() if name in names})
    except (ValueError, TypeError, ImportError, OSError) as error:
        message = " ".join(str(error).split())
        mentioned = [sources[name] for name in sources if name in re.findall(r"\w+", message)]
        where = mentioned[0] if mentioned else str(path)
        raise RecipeError(f"{where}: {message}") from error


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, tuple[Any, str]]:
    """Fields of a recipe and of what it extends: name → (value, `file:line`)."""
    if path.resolve() in seen:
        raise RecipeError(f"{path}: extends itself, by way of {' → '.join(str(p.name) for p in seen)}")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeError(f"{path}: cannot read the recipe: {reason}") from None
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from None
    own = _mapping(loader, path)
    extended, where = own.pop("extends", (None, ""))
    if extended is None:
        return own
    if not isinstance(extended, str):
        raise RecipeError(f"{where}: extends must be a file name, got {extended!r}")
    base = path.parent / extended
    if not base.is_file():
        raise RecipeError(f"{where}: extends: no such file: {base}")
    return {**_read_yaml(base, (*seen, path.resolve())), **own}


def _mapping(loader: yaml.SafeLoader, path: Path) -> dict[str, tuple[Any, str]]:
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}: a recipe is a list of `field: value` lines")
        values: dict[str, tuple[Any, str]] = {}
        for key_node, value_node in node.value:
            where = f"{path}:{key_node.start_mark.line + 1}"
            name = str(loader.construct_object(key_node))
            if name in values:
                raise RecipeError(f"{where}: {name} stands twice")
            values[name] = (loader.construct_object(value_node, deep=True), where)
        return values
    except yaml.YAMLError as error:
        raise _yaml_error(path, error) from None


def _yaml_error(path: Path, error: yaml.YAMLError) -> RecipeError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return RecipeError(f"{path}:{error.problem_mark.line + 1}: not YAML that a recipe may hold: {error.problem}")
    return RecipeError(f"{path}: {' '.join(str(error).split())}")


def _read_flags(words: list[str]) -> dict[str, tuple[Any, str]]:
    """`--field value`, `--field=value`, `--switch`, `--field a b`: name → (value, `--field`)."""
    values: dict[str, list[str]] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in values:
                raise RecipeError(f"--{name}: given twice")
            values[name] = [value] if equals else []
        elif name is None:
            raise RecipeError(f"'{word}': expected --field value; a command has one recipe")
        else:
            values[name].append(word)
    return {name: (_flag_value(name, words), f"--{name}") for name, words in values.items()}


def _flag_value(name: str, words: list[str]) -> Any:
    if not words:
        return True
    if name in _HINTS and _accepts(_HINTS[name], str) and not _accepts(_HINTS[name], list):
        text = " ".join(words)
        return None if text in ("null", "none", "None") and _accepts(_HINTS[name], types.NoneType) else text
    try:
        parsed = [yaml.safe_load(word) for word in words]
    except yaml.YAMLError:
        parsed = list(words)
    return parsed[0] if len(parsed) == 1 else parsed


def _accepts(hint: Any, kind: type) -> bool:
    return any(option is kind or get_origin(option) is kind for option in _options(hint))


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself; text beside an enum is that enum's spelling, not any text."""
    if get_origin(hint) not in (Union, types.UnionType):
        return (hint,)
    members = tuple(option for member in get_args(hint) for option in _options(member))
    return tuple(option for option in members if option is not str) if any(map(_is_enum, members)) else members


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _coerce(value: Any, hint: Any) -> Any:
    """The value as the hint's type; numbers that YAML reads as text (1e-5) are read as numbers."""
    for candidate in _options(hint):
        try:
            return _coerce_one(value, candidate)
        except (TypeError, ValueError, OverflowError):
            continue
    raise TypeError


def _coerce_one(value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if kind is types.NoneType and value is None:
        return None
    if origin is Literal and value in get_args(kind) and not isinstance(value, bool):
        return value
    if origin in (list, dict) and isinstance(value, origin):
        if origin is list:
            return [_coerce(item, get_args(kind)[0]) for item in value]
        return value
    if isinstance(kind, type) and origin is None:
        return _coerce_plain(value, kind)
    raise TypeError


def _coerce_plain(value: Any, kind: type) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = float(value)
        if kind is int and number != int(number):
            raise ValueError
        return kind(number) if kind is int and isinstance(value, float) else kind(value)
    if _is_enum(kind):
        return kind("no" if value is False else value).value  # YAML reads a bare `no` as false
    if kind in (str, dict) and isinstance(value, kind):
        return value
    raise TypeError


def _describe_type(hint: Any) -> str:
    words = []
    for candidate in _options(hint):
        if candidate is types.NoneType:
            words.append("null")
        elif get_origin(candidate) is Literal:
            words.append("one of " + ", ".join(map(str, get_args(candidate))))
        elif _is_enum(candidate):
            words.append("one of " + ", ".join(str(member.value) for member in candidate))
        else:
            names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
            words.append(names.get(candidate, "a list" if get_origin(candidate) is list else "a mapping"))
    return " or ".join(dict.fromkeys(words))


def _nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""
