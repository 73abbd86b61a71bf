"""Student and teacher: loading, LoRA, vocabulary alignment, sanity checks.

Both are plain `AutoModelForCausalLM`s, split where the loss needs them split: a backbone that gives hidden states and
a head that `fused_loss` multiplies itself. `head_of` reads the head's scale and soft cap from the configuration, and
`check_models` compares the result with the model's own logits on a real prompt, alone and in a packed row, so that an
architecture whose head or whose layers do something else is an error at the start and not a quietly different loss.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file, find_adapter_config_file

from vopd_recipes.models.attention import PACKED_SDPA, packed_arguments
from vopd_recipes.recipe.config import ModelConfig, RecipeError
from vopd_recipes.loss.fused import Head
from vopd_recipes.models.sharding import redirected

# Mean entropy above this share of log V: a model that has learnt nothing, or whose weights were not loaded.
_UNIFORM_ENTROPY_SHARE = 0.98
# Relative difference of a token's hidden state, packed and alone: rounding in bfloat16 is some 1%, mixing over 30%.
_PACKING_TOLERANCE = 0.1


def load_tokenizer(config: ModelConfig, teacher: bool = False) -> PreTrainedTokenizerBase:
    """The student's tokenizer, or the teacher's.

    Raises:
        RecipeError: there is none at that name, or it cannot be reached.
    """
    name, revision = _source(config, teacher)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # loaders and remote code raise what they like; each becomes one line
        raise _load_error(config, teacher, "tokenizer", error) from error


def load_student(config: ModelConfig) -> PreTrainedModel | PeftModel:
    """The student: its weights are trained, or LoRA adapters where asked for and nothing else.

    Where `model_name_or_path` holds a LoRA adapter, the base that it names is loaded, and training goes on with it.

    Raises:
        RecipeError: it cannot be loaded, or an adapter there is not the one that the recipe describes.
    """
    if adapter := _find_adapter(config):
        return _load_adapter(config, adapter)
    student = _load(config, teacher=False)
    student.config.use_cache = False
    if not config.use_peft:
        return student
    try:
        return get_peft_model(student, _lora(config), revision=config.model_revision)
    except ValueError as error:
        raise RecipeError(f"lora_target_modules: {' '.join(str(error).split())}") from error


def _lora(config: ModelConfig) -> LoraConfig:
    return LoraConfig(
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
    return student


def _targets(config: ModelConfig, base: PreTrainedModel) -> set[str]:
    """Names of the modules of a base that the recipe's `lora_target_modules` means."""
    if config.lora_target_modules == "all-linear":
        head = base.get_output_embeddings()
        layers = [(name, module) for name, module in base.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
        return {name for name, module in layers if module is not head}
    lora = _lora(config)
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


def load_teacher(config: ModelConfig) -> PreTrainedModel:
    """The teacher: frozen, in evaluation mode."""
    return _load(config, teacher=True).eval().requires_grad_(False)


def _load(config: ModelConfig, teacher: bool) -> PreTrainedModel:
    name, revision = _source(config, teacher)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=getattr(torch, (teacher and config.teacher_dtype) or config.dtype),
            attn_implementation=config.attn_implementation or default_attention(config.dtype),
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


def _source(config: ModelConfig, teacher: bool) -> tuple[str, str | None]:
    if teacher:
        return str(config.teacher_model_name_or_path), config.teacher_model_revision
    return str(config.model_name_or_path), config.model_revision


def _load_error(config: ModelConfig, teacher: bool, what: str, error: Exception) -> RecipeError:
    name, revision = _source(config, teacher)
    field = "teacher_model_name_or_path" if teacher else "model_name_or_path"
    at = f", revision {revision}" if revision else ""
    return RecipeError(f"{field}: cannot load a {what} from {name}{at}: {' '.join(str(error).split())[:600]}")


def default_attention(dtype: str) -> str:
    """Flash-attention where it can run, else sdpa a sequence at a time."""
    has_flash = importlib.util.find_spec("flash_attn") is not None and torch.cuda.is_available()
    return "flash_attention_2" if has_flash and dtype != "float32" else PACKED_SDPA


def causal_lm_of(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside an optional PEFT wrapper."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def head_module(model: nn.Module) -> nn.Linear:
    """The linear layer that makes logits.

    Raises:
        RecipeError: the head is not a plain linear layer (LoRA on lm_head, for instance).
    """
    causal_lm = causal_lm_of(model)
    module = causal_lm.get_output_embeddings()
    if not isinstance(module, nn.Linear):
        raise RecipeError(
            f"the head of {type(causal_lm).__name__} is a {type(module).__name__}, not a linear layer; "
            "leave lm_head out of lora_target_modules"
        )
    return module


def head_of(model: nn.Module) -> Head:
    """The language-model head with its scale and soft cap; under ZeRO-3 its weight is a slice outside the forward."""
    module = head_module(model)
    config = causal_lm_of(model).config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return Head(module.weight, module.bias, scale, getattr(config, "final_logit_softcapping", None))


def hidden_states(model: nn.Module, input_ids: Tensor, position_ids: Tensor, **packed: Any) -> Tensor:
    """The backbone's last hidden states of a row, [T, H], without the head."""
    backbone = causal_lm_of(model).base_model
    output = backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False, **packed)
    return output.last_hidden_state[0]


def vocabulary_of(model: nn.Module) -> int:
    """Number of tokens that the head scores, padding included: a student's and a teacher's may differ."""
    return head_module(model).out_features


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """The same id must mean the same text to both models.

    Ids that only one of them names are fine: extra special tokens in the padding of the other's vocabulary.

    Raises:
        RecipeError: some id differs.
    """
    ours = {index: token for token, index in student.get_vocab().items()}
    theirs = {index: token for token, index in teacher.get_vocab().items()}
    common = ours.keys() & theirs.keys()
    differing = sorted(index for index in common if ours[index] != theirs[index])
    if differing or len(common) < 0.9 * max(len(ours), len(theirs)):
        example = f"; id {differing[0]} is {ours[differing[0]]!r} and {theirs[differing[0]]!r}" if differing else ""
        raise RecipeError(
            f"teacher_model_name_or_path: its tokenizer differs from the student's in "
            f"{len(differing) + abs(len(ours) - len(theirs))} tokens{example}; on-policy distillation compares token "
            "by token and needs one vocabulary"
        )


def end_of_sequence_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a completion: the tokenizer's, and those of the model's generation settings."""
    configured = causal_lm_of(model).generation_config
    ids = configured.eos_token_id if configured is not None else None
    ids = ids if isinstance(ids, list) else [ids]
    found = {index for index in (*ids, tokenizer.eos_token_id) if index is not None}
    if not found:
        raise RecipeError("model_name_or_path: neither tokenizer nor model names an end-of-sequence token")
    return found


@torch.no_grad()
def check_models(student: nn.Module, teacher: nn.Module | None, prompt: list[int]) -> None:
    """Before step 1, on a real prompt: the models here are understood and the teacher has something to teach.

    Raises:
        RecipeError: logits that `head_of` does not reproduce, layers that mix the sequences of a packed row, or a
            teacher that is not finite or knows nothing.
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if model is None:
            continue
        training, config = model.training, causal_lm_of(model).config
        label = f"{name} {config._name_or_path or type(causal_lm_of(model)).__name__}"
        try:
            _check_one(name, label, model.eval(), prompt)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise RecipeError(f"{label}: its forward fails on the first prompt: {error}") from error
        model.train(training)


def _check_one(name: str, label: str, model: nn.Module, prompt: list[int]) -> None:
    """All of it inside one forward of the model: outside, a sharded one has no weights."""
    own_forward = causal_lm_of(model).forward
    with redirected(model, lambda: _compare(name, label, model, own_forward, prompt)):
        model()


def _compare(name: str, label: str, model: nn.Module, own_forward: Callable[..., Any], prompt: list[int]) -> None:
    causal_lm, head = causal_lm_of(model), head_of(model)
    input_ids = torch.tensor([prompt], device=causal_lm.device)
    logits = own_forward(input_ids=input_ids, use_cache=False).logits[0].float()
    if not logits.isfinite().all():
        raise RecipeError(f"{label}: its logits on the first prompt are not finite; check its weights and dtype")
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    if name == "teacher" and entropy > _UNIFORM_ENTROPY_SHARE * math.log(logits.shape[1]):
        raise RecipeError(
            f"{label}: its next-token distribution is uniform (entropy {entropy:.2f} nats of "
            f"{math.log(logits.shape[1]):.2f}); were its weights loaded?"
        )
    hidden = hidden_states(model, input_ids, torch.arange(len(prompt), device=causal_lm.device)[None])
    module = head_module(model)
    with redirected(module, lambda hidden: nn.functional.linear(hidden, module.weight, module.bias)):
        ours = scale_logits(module(hidden).float(), head)
    if (ours - logits).abs().max() > 0.02 * logits.abs().max() + 1e-3:
        raise RecipeError(f"{label}: its head is not softcap·tanh(scale·(W h + b)/softcap), which the loss computes")
    _check_packing(label, model, hidden, prompt)


def _check_packing(label: str, model: nn.Module, alone: Tensor, prompt: list[int]) -> None:
    """A sequence after another one in a row must have the hidden states [T, H] that it has alone."""
    causal_lm = causal_lm_of(model)
    lengths = ((len(prompt) + 1) // 2, len(prompt))
    row = torch.tensor([prompt[: lengths[0]] + prompt], device=causal_lm.device)
    positions = torch.cat([torch.arange(length, device=row.device) for length in lengths])[None]
    packed = packed_arguments(causal_lm.config._attn_implementation, lengths, row.device)
    together = hidden_states(model, row, positions, **packed)[lengths[0] :]
    difference = (together.float() - alone.float()).norm(dim=-1) / alone.float().norm(dim=-1).clamp_min(1e-6)
    # The first tokens, because what leaks in from before fades; their mean, because rounding may swap experts.
    if difference[:4].mean() > _PACKING_TOLERANCE:
        raise RecipeError(
            f"{label}: its layers mix the sequences of a packed row (recurrent or convolutional layers do, and some "
            f"attention with attn_implementation: {causal_lm.config._attn_implementation}), which training relies on"
        )


def scale_logits(products: Tensor, head: Head) -> Tensor:
    """W h + b [N, V] becomes logits, as `fused_loss` defines them."""
    logits = products * head.logit_scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
