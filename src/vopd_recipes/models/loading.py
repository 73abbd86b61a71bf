"""Student and teacher: loading, LoRA, vocabulary alignment, sanity checks.

Both are plain `AutoModelForCausalLM`s, split where the loss needs them split: a backbone that gives hidden states and
a head that `fused_loss` multiplies itself. `head_of` reads the head's scale and soft cap from the configuration, and
`check_models` compares the result with the model's own logits on a real prompt, alone and in a packed row, so that an
architecture whose head or whose layers do something else is an error at the start and not a quietly different loss.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file, find_adapter_config_file

from vopd_recipes.models.architecture import causal_lm_of
from vopd_recipes.models.attention import PACKED_SDPA
from vopd_recipes.recipe import ModelConfig, RecipeError, one_line


def load_tokenizer(config: ModelConfig, teacher: bool = False) -> PreTrainedTokenizerBase:
    """The student's tokenizer, which ends texts with the recipe's `eos_token`, or the teacher's.

    Raises:
        RecipeError: there is none at that name, or it cannot be reached, or it has no such token.
    """
    name, revision = _source(config, teacher)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # loaders and remote code raise what they like; each becomes one line
        raise _load_error(config, teacher, "tokenizer", error) from error
    if config.eos_token is not None and not teacher:
        if config.eos_token not in tokenizer.get_vocab():
            raise RecipeError(f"eos_token: {config.eos_token} is no token of {name}")
        tokenizer.eos_token = config.eos_token
    return tokenizer


def load_student(config: ModelConfig) -> PreTrainedModel | PeftModel:
    """The student: its weights are trained, or LoRA adapters where asked for and nothing else.

    Of a model that reads pictures or sound as well, what text does not pass is neither trained nor adapted: it would
    never get a gradient, for which DDP would wait.

    Where `model_name_or_path` holds a LoRA adapter, the base that it names is loaded, and training continues it.

    Raises:
        RecipeError: it cannot be loaded, or an adapter there is not the one that the recipe describes.
    """
    if adapter := _find_adapter(config):
        return _load_adapter(config, adapter)
    student = _load(config, teacher=False)
    student.config.use_cache = False
    for name in _beside_text(student):
        student.get_submodule(name).requires_grad_(False)
    if not config.use_peft:
        return student
    try:
        adapted = get_peft_model(student, _lora(config, student), revision=config.model_revision)
    except ValueError as error:
        raise RecipeError(f"lora_target_modules: {one_line(error)}") from error
    _check_layers(adapted)
    cast_outside_autocast(adapted)
    return adapted


class _OutsideAutocast:
    """True where a LoRA layer has to make its input fit its weights: under autocast the products do that themselves,
    and PEFT's way through float32 costs two passes and a copy that the backward keeps.
    """

    def __bool__(self) -> bool:
        return not any(torch.is_autocast_enabled(kind) for kind in ("cuda", "cpu"))


def cast_outside_autocast(student: nn.Module) -> None:
    """Spare a student's LoRA layers the casts of their inputs that autocast undoes: nothing else changes."""
    for module in student.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = cast(bool, _OutsideAutocast())


def _check_layers(student: PeftModel) -> None:
    """Adapters sit where they can be merged into one weight, for the sampler and for whoever loads the result."""
    head = causal_lm_of(student).get_output_embeddings()
    for name, module in causal_lm_of(student).named_modules():
        if not isinstance(module, LoraLayer):
            continue
        base = module.get_base_layer()
        if type(module) not in (lora.Linear, lora.Embedding):
            raise RecipeError(
                f"lora_target_modules: {name} is a {type(base).__name__}, whose adapters cannot be merged into it; "
                "name linear layers or embeddings"
            )
        if module is not head and base.weight is getattr(head, "weight", None):
            raise RecipeError(
                f"lora_target_modules: {name} shares its weight with the head, which its adapters do not reach; "
                "leave it out"
            )


def _beside_text(model: PreTrainedModel) -> list[str]:
    """Names of the modules that text does not pass: neither of its decoder nor of the head."""
    passed = {id(p) for part in (model.get_decoder(), model.get_output_embeddings()) for p in part.parameters()}
    found: list[str] = []
    for name, module in model.named_modules():
        own = {id(parameter) for parameter in module.parameters()}
        if own and not own & passed and not name.startswith(tuple(f"{above}." for above in found)):
            found.append(name)
    return found


def _within(names: list[str]) -> str | None:
    """A pattern of these modules and all in them; `None` for none."""
    return rf"({'|'.join(map(re.escape, names))})(\..*)?" if names else None


def _lora(config: ModelConfig, base: PreTrainedModel) -> LoraConfig:
    return LoraConfig(
        exclude_modules=_within(_beside_text(base)),
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def _find_adapter(config: ModelConfig) -> Path | None:
    """The folder on this machine that holds the adapter which the recipe starts from; `None` for a whole model."""
    name, revision = _source(config, teacher=False)
    try:
        found = find_adapter_config_file(name, revision=revision)
        if found is None:
            return None
        # Beside it; without this file PEFT would read a pickle.
        return Path(str(cached_file(name, "adapter_model.safetensors", revision=revision))).parent
    except Exception as error:
        raise _load_error(config, False, "model", error) from error


def _load_adapter(config: ModelConfig, folder: Path) -> PeftModel:
    name = str(config.model_name_or_path)
    settings: Any = PeftConfig.from_pretrained(str(folder))
    if not config.use_peft:
        raise RecipeError(
            f"model_name_or_path: {name} is a LoRA adapter; set use_peft: true, or start from its -merged repository "
            "or a folder of merged weights"
        )
    if settings.peft_type != "LORA" or settings.use_dora or settings.modules_to_save or settings.bias != "none":
        raise RecipeError(
            f"model_name_or_path: {name} is more than a plain LoRA adapter, which is all that is trained"
        )
    below = replace(config, model_name_or_path=settings.base_model_name_or_path, model_revision=settings.revision)
    try:
        base = _load(below, teacher=False)
    except RecipeError as error:
        raise RecipeError(f"model_name_or_path: {name} is a LoRA adapter; its base: {error}") from error
    base.config.use_cache = False
    expected = _targets(config, base)
    settings.lora_dropout = config.lora_dropout
    student = PeftModel.from_pretrained(base, str(folder), is_trainable=True, config=settings)
    _check_adapter(config, student, settings, expected, folder)
    _check_layers(student)
    cast_outside_autocast(student)
    return student


def _targets(config: ModelConfig, base: PreTrainedModel) -> set[str]:
    """Names of the modules of a base that the recipe's `lora_target_modules` means."""
    lora = _lora(config, base)
    if config.lora_target_modules == "all-linear":
        head = base.get_output_embeddings()
        layers = [(name, module) for name, module in base.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
        beside = _within(_beside_text(base)) or "$^"
        return {name for name, module in layers if module is not head and not re.fullmatch(beside, name)}
    return {name for name, _ in base.named_modules() if check_target_module_exists(lora, name)}


def _check_adapter(config: ModelConfig, student: PeftModel, settings: Any, expected: set[str], folder: Path) -> None:
    """The adapter is whole, and is the one that the recipe, which is published with the run, describes."""
    name = config.model_name_or_path
    for field, found in (("lora_r", settings.r), ("lora_alpha", settings.lora_alpha)):
        if getattr(config, field) != found:
            raise RecipeError(
                f"{field}: {getattr(config, field)}, but the adapter {name} has {found}; set {field}: {found}"
            )
    adapted = {name for name, module in causal_lm_of(student).named_modules() if isinstance(module, LoraLayer)}
    if adapted != expected:
        targets = settings.target_modules
        named = targets if isinstance(targets, str) else f"[{', '.join(sorted(targets))}]"
        raise RecipeError(
            f"lora_target_modules: {config.lora_target_modules} is not what the adapter {name} adapts; "
            f"set lora_target_modules: {named}"
        )
    with safe_open(folder / "adapter_model.safetensors", "pt") as saved:
        if differing := sorted(set(saved.keys()) ^ get_peft_model_state_dict(student).keys()):
            error = ValueError(
                f"{len(differing)} of the adapter's weights are missing or unknown, {differing[0]} first"
            )
            raise _load_error(config, False, "model", error)


def base_of(student: nn.Module, source: ModelConfig) -> ModelConfig:
    """Where the weights under a student's adapters can be loaded from; `source` itself where it is that already.

    Args:
        student: with or without adapters.
        source: what the student was loaded from.
    """
    if not isinstance(student, PeftModel):
        return source
    adapter = student.peft_config[student.active_adapter]
    return replace(source, model_name_or_path=adapter.base_model_name_or_path, model_revision=adapter.revision)


def is_own_base(student: nn.Module, config: ModelConfig) -> bool:
    """Whether a recipe's teacher is the model under the student's adapters: the same weights in the same type."""
    if not isinstance(student, PeftModel) or (config.teacher_dtype or config.dtype) != config.dtype:
        return False
    base = base_of(student, config)
    teacher = config.teacher_model_name_or_path, config.teacher_model_revision
    own = base.model_name_or_path, base.model_revision
    folders = [Path(str(name)) for name, _ in (teacher, own)]
    same_folder = folders[0].is_dir() and folders[1].is_dir() and folders[0].resolve() == folders[1].resolve()
    return teacher == own or same_folder


def load_teacher(config: ModelConfig) -> PreTrainedModel:
    """The teacher: frozen, in evaluation mode."""
    return _load(config, teacher=True).eval().requires_grad_(False)


def _load(config: ModelConfig, teacher: bool) -> PreTrainedModel:
    name, revision = _source(config, teacher)
    dtype = (teacher and config.teacher_dtype) or config.dtype
    try:
        settings = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
        if not config.dropout:
            for field in noise_of(settings):
                setattr(settings.get_text_config(), field, 0.0)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=settings,
            revision=revision,
            dtype=getattr(torch, dtype),
            attn_implementation=config.attn_implementation or default_attention(settings, dtype),
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise _load_error(config, teacher, "model", error) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
        raise _load_error(
            config, teacher, "model", ValueError(f"{len(missing)} weights are missing, {missing[0]} first")
        )
    return model


def noise_of(settings: PreTrainedConfig) -> list[str]:
    """Fields of a model's configuration that make its layers random while it trains: dropout, noise on a router."""
    fields = vars(settings.get_text_config()).items()
    return [name for name, value in fields if re.search("drop|jitter", name) and isinstance(value, float) and value]


def _source(config: ModelConfig, teacher: bool) -> tuple[str, str | None]:
    if teacher:
        return str(config.teacher_model_name_or_path), config.teacher_model_revision
    return str(config.model_name_or_path), config.model_revision


def _load_error(config: ModelConfig, teacher: bool, what: str, error: Exception) -> RecipeError:
    name, revision = _source(config, teacher)
    field = "teacher_model_name_or_path" if teacher else "model_name_or_path"
    at = f", revision {revision}" if revision else ""
    return RecipeError(f"{field}: cannot load a {what} from {name}{at}: {one_line(error, 600)}")


def default_attention(settings: PreTrainedConfig, dtype: str) -> str:
    """Flash-attention where it can run, else sdpa a sequence at a time, and eager for what sdpa does not compute.

    Args:
        settings: the model's configuration.
        dtype: of its weights.
    """
    known = type(settings) in MODEL_FOR_CAUSAL_LM_MAPPING
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)] if known else PreTrainedModel
    flash = "flash_attention_2"
    has_flash = importlib.util.find_spec("flash_attn") is not None and torch.cuda.is_available()
    serves = flash in (getattr(architecture, "_compatible_flash_implementations", None) or [flash])
    if has_flash and dtype != "float32" and serves and (architecture._supports_flash_attn or not known):
        return flash
    capped = getattr(settings.get_text_config(), "attn_logit_softcapping", None) is not None
    return "eager" if capped or (known and not architecture._supports_sdpa) else PACKED_SDPA
