"""The weights that leave the trainer are the whole ones: names, ties, adapters, slices."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, sharpened
from launching import REPOSITORY, on_two_processes
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ApertusConfig, AutoModelForCausalLM, Glm4MoeConfig, PreTrainedConfig, PreTrainedModel

from vopd_recipes.models import FullCopy, full_weights

# Small enough for a test, and of the shapes that vLLM's kernels for CPUs take.
SHAPE = {
    "vocab_size": 264, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 256,
}  # fmt: skip
APERTUS = ApertusConfig(**SHAPE, tie_word_embeddings=False)
GLM4_MOE = Glm4MoeConfig(
    **SHAPE, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1, n_group=1,
    topk_group=1, tie_word_embeddings=False,
)  # fmt: skip


def random_model(settings: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return sharpened(AutoModelForCausalLM.from_config(settings))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def with_adapters(model: PreTrainedModel, **settings: object) -> PeftModel:
    """LoRA whose B is not zero, as it is after a step."""
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
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
