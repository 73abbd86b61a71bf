"""The weights that leave the trainer are the whole ones: names, ties, adapters, slices."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, sharpened
from family_configs import FAMILIES as TINY
from family_configs import SHAPE
from launching import REPOSITORY, on_two_processes
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import (
    ApertusConfig,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Ernie4_5_MoeConfig,
    Gemma2Config,
    Glm4MoeConfig,
    GPT2Config,
    MixtralConfig,
    Olmo3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from vopd_recipes.models import FullCopy, check_models, checkpoint_weights, full_weights, load_student, load_weights
from vopd_recipes.models.weights import merging_error
from vopd_recipes.recipe import ModelConfig, RecipeError

APERTUS = ApertusConfig(**SHAPE, tie_word_embeddings=False)
GLM4_MOE = Glm4MoeConfig(
    **SHAPE, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1, n_group=1,
    topk_group=1, tie_word_embeddings=False,
)  # fmt: skip


MIXTURES = (
    MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    Qwen3MoeConfig(**SHAPE, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
    Ernie4_5_MoeConfig(
        **SHAPE, moe_intermediate_size=32, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1,
        moe_layer_start_index=1,
    ),
)  # fmt: skip
OLMO3 = Olmo3Config(**SHAPE)
FAMILIES = {
    "mixtral": MIXTURES[0],  # first: vLLM wants it so
    "gemma2": Gemma2Config(**SHAPE, query_pre_attn_scalar=32, attn_implementation="eager"),
    "apertus": APERTUS,
}


def random_model(settings: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return sharpened(AutoModelForCausalLM.from_config(settings), factor=4)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def with_adapters(model: PreTrainedModel, std: float = 0.1, **settings: object) -> PeftModel:
    """LoRA whose B is not zero, as it is after a step."""
    settings = {"target_modules": "all-linear", **settings}
    config = LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name or ".lora_embedding_B." in name:
                parameter.normal_(std=std, generator=torch.Generator().manual_seed(0))
    return adapted


@pytest.mark.parametrize("which", ["student", "teacher"])  # tied, untied
def test_names_and_values_are_the_checkpoints(tiny_pair: TinyPair, which: str) -> None:
    model = load(getattr(tiny_pair, which))
    weights = dict(full_weights(model))
    assert weights.keys() == model.state_dict().keys()  # tied weights under both names
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor) and not weights[name].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_and_the_base_stays_bit_identical(tiny_pair: TinyPair, dtype: torch.dtype) -> None:
    adapted = with_adapters(load(tiny_pair.student, dtype))
    before = copy.deepcopy(adapted.state_dict())
    weights = {name: tensor.clone() for name, tensor in full_weights(adapted)}
    assert all(torch.equal(before[name], tensor) for name, tensor in adapted.state_dict().items())

    exact = with_adapters(load(tiny_pair.student, dtype).float())
    exact.load_state_dict(before)
    merged = exact.merge_and_unload()
    assert weights.keys() == merged.state_dict().keys()
    for name, expected in merged.state_dict().items():
        assert weights[name].dtype == dtype
        # Merged in float32 and rounded once: half a unit in the last place of bfloat16 is 2⁻⁹ of the value.
        rtol = 2**-8 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(weights[name].float(), expected.float(), atol=1e-6, rtol=rtol)
    changed = [
        name
        for name, tensor in weights.items()
        if not torch.equal(tensor, load(tiny_pair.student, dtype).state_dict()[name])
    ]
    assert len(changed) == 2 * 7  # every projection of both layers


def test_a_disabled_adapter_is_not_merged(tiny_pair: TinyPair) -> None:
    adapted = with_adapters(load(tiny_pair.student))
    adapted.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    one = {name: tensor.clone() for name, tensor in full_weights(adapted)}
    adapted.base_model.set_adapter("other")  # its B is zero
    for name, tensor in full_weights(adapted):
        assert torch.equal(tensor, load(tiny_pair.student).state_dict()[name]) or "q_proj" in name
    assert any(not torch.equal(tensor, one[name]) for name, tensor in full_weights(adapted))


def test_a_full_copy_has_weights_between_fill_and_release(tiny_pair: TinyPair) -> None:
    student = load(tiny_pair.student)
    full = FullCopy(student, torch.device("cpu"))
    assert sum(parameter.numel() for parameter in full.model.parameters()) == 0
    full.fill(full_weights(student))
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        assert torch.equal(full.model(ids).logits, student.eval()(ids).logits)
        student.model.norm.weight.add_(1)
        assert not torch.equal(full.model(ids).logits, student(ids).logits)  # a copy, not a view
    full.release()
    assert sum(parameter.numel() for parameter in full.model.parameters()) == 0


@pytest.mark.parametrize("settings", [APERTUS, GLM4_MOE], ids=lambda settings: settings.model_type)
def test_buffers_of_the_checkpoint_are_handed_over(settings: PreTrainedConfig) -> None:
    """Apertus keeps an activation's constant in one, GLM-4's router the bias by which it chooses experts."""
    student = random_model(settings)
    buffers = {name: buffer for name, buffer in student.named_buffers() if name in student.state_dict()}
    assert buffers
    for buffer in buffers.values():
        buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(0)))
    for model in (student, with_adapters(student)):
        weights = {name: tensor.clone() for name, tensor in full_weights(model)}
        assert all(torch.equal(weights[name], buffer) for name, buffer in buffers.items())
    plain = random_model(settings)
    full = FullCopy(plain, torch.device("cpu"))
    plain.load_state_dict({name: tensor + 0.01 for name, tensor in plain.state_dict().items()})
    full.fill(full_weights(plain))
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        assert torch.equal(full.model(ids).logits, plain(ids).logits)


VISION = {"hidden_size": 32, "intermediate_size": 32}
QWEN35 = AutoConfig.for_model(
    "qwen3_5", text_config=SHAPE | TINY["Qwen3.5"].fields,
    vision_config={**VISION, "depth": 1, "num_heads": 2, "out_hidden_size": 64},
)  # fmt: skip
GEMMA3 = TINY["Gemma 3, text and pictures"].settings()
GPT2 = GPT2Config(vocab_size=264, n_positions=128, n_embd=64, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=256)
UNTIED = Qwen3Config(**SHAPE, tie_word_embeddings=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("settings", "targets"), [(GPT2, ["c_attn", "c_proj", "c_fc"]), (UNTIED, ["embed_tokens", "q_proj"])]
)
def test_merged_weights_are_the_adapted_model(
    settings: PreTrainedConfig, targets: list[str], dtype: torch.dtype
) -> None:
    """Conv1D and embeddings hold the transpose of what a linear layer does."""
    plain = random_model(settings).to(dtype)
    adapted = with_adapters(copy.deepcopy(plain), target_modules=targets).eval()
    weights = {name: tensor.clone() for name, tensor in full_weights(adapted)}
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        expected, before = adapted(ids).logits, plain(ids).logits
        plain.load_state_dict(weights)
        error = (plain(ids).logits - expected).float().norm() / (before - expected).float().norm()
    assert error < (0.1 if dtype == torch.bfloat16 else 1e-5)
    at_the_start = with_adapters(random_model(settings).to(dtype), std=0, target_modules=targets).eval()
    state = copy.deepcopy(at_the_start.state_dict())
    assert merging_error(at_the_start, lambda: at_the_start(ids)) < (0.03 if dtype == torch.bfloat16 else 1e-5)
    assert all(torch.equal(state[name], tensor) for name, tensor in at_the_start.state_dict().items())


def test_a_layer_that_is_merged_wrongly_is_found() -> None:
    adapted = with_adapters(random_model(UNTIED), std=0).eval()
    check_models(adapted, None, list(range(40, 60)))
    layer = next(module for module in adapted.modules() if isinstance(module, LoraLayer))
    layer.forward = lambda x: layer.base_layer(x) - layer.lora_B["default"](layer.lora_A["default"](x))
    with pytest.raises(RecipeError, match=r"student \w+: merged into its weights, its adapters do something else"):
        check_models(adapted, None, list(range(40, 60)))


@pytest.mark.parametrize("settings", [*MIXTURES, GLM4_MOE], ids=lambda settings: settings.model_type)
def test_experts_leave_under_the_names_of_the_file(settings: PreTrainedConfig, tmp_path: Path) -> None:
    """Fused while they are trained, one by one in a checkpoint, and to the bit what `save_pretrained` writes."""
    random_model(settings).save_pretrained(tmp_path)
    student = load(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert any(".experts.3." in name for name in saved)
    assert not any(".experts.3." in name for name, _ in full_weights(student))
    sent = dict(checkpoint_weights(student, full_weights(student)))
    assert sent.keys() - saved.keys() <= {"lm_head.weight"}  # a tied head comes twice
    for name, tensor in saved.items():
        assert torch.equal(sent[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [*MIXTURES, GLM4_MOE, QWEN35, GEMMA3, OLMO3], ids=lambda given: given.model_type)
def test_what_was_saved_is_read_back(settings: PreTrainedConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    """Into the model that wrote it, trained further meanwhile: to the bit, by whatever names the file has."""
    torch.manual_seed(0)
    reads_pictures = settings in (QWEN35, GEMMA3)
    whole = (AutoModelForImageTextToText if reads_pictures else AutoModelForCausalLM).from_config(settings)
    whole.save_pretrained(tmp_path / "start")
    word = str(dtype).removeprefix("torch.")
    student = load_student(ModelConfig(model_name_or_path=str(tmp_path / "start"), dtype=word))
    student.save_pretrained(tmp_path / "saved")
    expected = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    load_weights(student, tmp_path / "saved")
    assert all(torch.equal(expected[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("settings", [QWEN35, GEMMA3], ids=lambda settings: settings.model_type)
def test_the_text_of_a_model_that_reads_pictures(settings: PreTrainedConfig, tmp_path: Path) -> None:
    """Trained of either is what text passes; what leaves has the names of the file, and what is saved loads again."""
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(settings).save_pretrained(tmp_path / "whole")
    saved = load_file(tmp_path / "whole" / "model.safetensors")
    student = load_student(ModelConfig(model_name_or_path=str(tmp_path / "whole")))
    sent = dict(checkpoint_weights(student, full_weights(student)))
    assert sent.keys() - saved.keys() <= {"lm_head.weight"}  # a tied head comes twice
    assert {name for name in saved if "language_model" in name} <= sent.keys()
    assert all(torch.equal(sent[name], tensor) for name, tensor in saved.items() if name in sent)
    student.save_pretrained(tmp_path / "text")
    again = load_student(ModelConfig(model_name_or_path=str(tmp_path / "text")))
    for (name, ours), (_, theirs) in zip(full_weights(student), full_weights(again), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"use_peft": True, "lora_r": 4}], ids=["full", "lora"])
def test_slices_of_fully_shard_are_put_together(write_recipe, tmp_path: Path, fields: dict) -> None:
    """Slow: two processes. FSDP2's slices without accelerate, which has no FSDP2 on CPUs."""
    seen = on_two_processes("fsdp2", write_recipe(**fields), tmp_path / "seen.json")
    assert seen["weights"] == seen["copy"] == 0
    assert seen["most_alive"] == 1
    assert seen["largest_gradient"] > 0.01
    assert seen["loss"] < 1e-6 and seen["gradients"] < 1e-6


@pytest.mark.slow
def test_slices_of_zero3_are_put_together_one_at_a_time(write_recipe, tmp_path: Path) -> None:
    """Slow: two processes."""
    recipe = write_recipe(deepspeed=str(REPOSITORY / "recipes" / "deepspeed" / "zero3.json"))
    assert on_two_processes("zero3", recipe, tmp_path / "seen.json") == {"weights": 0, "most_alive": 1}
