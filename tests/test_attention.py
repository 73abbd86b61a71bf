"""A packed row gives every sequence what it gets alone: hidden states, logits and gradients."""

import copy
from typing import Any

import pytest
import torch
from conftest import sharpened
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    MistralConfig,
    Olmo3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    StableLmConfig,
)

from vopd_recipes.models import PACKED_SDPA, hidden_states, packed_arguments
from vopd_recipes.models.attention import fits_varlen, packed_sdpa, varlen_arguments

CPU = torch.device("cpu")
LENGTHS = (9, 1, 17, 4)  # one as long as the windows below
SHAPE = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3_window": Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "olmo3": Olmo3Config(**SHAPE, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "mistral": MistralConfig(**SHAPE, sliding_window=4),
    "mistral_one_head": MistralConfig(**{**SHAPE, "num_key_value_heads": 4}, sliding_window=32),
}


def build(config: PreTrainedConfig, implementation: str) -> PreTrainedModel:
    """The same weights whatever the implementation."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=implementation)
    return sharpened(model)


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 80, (1, length), generator=generator) for length in LENGTHS]


def packed_logits(model: PreTrainedModel) -> Tensor:
    """Logits [T, V] of the sequences in one row, by the way that training takes."""
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    arguments = packed_arguments(model.config._attn_implementation, LENGTHS, CPU)
    return model.lm_head(hidden_states(model, torch.cat(sequences(), dim=1), positions, **arguments))


def separate_logits(model: PreTrainedModel) -> Tensor:
    return torch.cat([model(input_ids=ids, use_cache=False).logits[0] for ids in sequences()])


def gradients(model: PreTrainedModel, logits: Tensor) -> list[Tensor]:
    model.zero_grad()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits.log_softmax(-1) * weights).mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("implementation", [PACKED_SDPA, "sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_logits_equal_separate_ones(name: str, implementation: str) -> None:
    with torch.no_grad():
        expected = separate_logits(build(CONFIGS[name], "eager"))
        actual = packed_logits(build(CONFIGS[name], implementation))
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_the_window_and_the_boundaries_matter() -> None:
    """Guards the test above: without either, logits would differ by far more than its tolerance."""
    with torch.no_grad():
        windowed = separate_logits(build(CONFIGS["mistral"], "eager"))
        full = separate_logits(build(MistralConfig(**SHAPE, sliding_window=None), "eager"))
        one = build(CONFIGS["qwen3"], "sdpa")
        unpacked = one(input_ids=torch.cat(sequences(), dim=1), use_cache=False).logits[0]
        assert (windowed - full).abs().max() > 0.05
        assert (unpacked - separate_logits(one)).abs().max() > 0.05


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "olmo3"])
def test_packed_gradients_equal_separate_ones(name: str, checkpointing: bool) -> None:
    reference, model = build(CONFIGS[name], "eager"), build(CONFIGS[name], PACKED_SDPA).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected, actual = gradients(reference, separate_logits(reference)), gradients(model, packed_logits(model))
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "olmo3"])
def test_generation_with_left_padding_and_a_cache_is_sdpas(name: str) -> None:
    width = max(LENGTHS)
    ids = torch.cat([nn.functional.pad(row, (width - row.shape[1], 0)) for row in sequences()])
    arguments: dict[str, Any] = {
        "input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 12, "min_new_tokens": 12,
        "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
    }  # fmt: skip
    ours, theirs = (build(CONFIGS[name], kind).generate(**arguments) for kind in (PACKED_SDPA, "sdpa"))
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # and what sdpa does is right: the shortest row alone, without padding
        row = torch.cat([sequences()[1], ours.sequences[1:2, width:]], dim=1)
        alone = build(CONFIGS[name], "eager")(input_ids=row, use_cache=False).logits[0, :-1]
    torch.testing.assert_close(torch.stack(ours.logits)[:, 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_cost_is_the_sum_of_squares_not_the_square_of_the_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, Any]] = []
    kernel = nn.functional.scaled_dot_product_attention

    def counting(query: Tensor, key: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        calls.append((query.shape[2], key.shape[2], kwargs["attn_mask"]))
        return kernel(query, key, *rest, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counting)
    with torch.no_grad():
        packed_logits(build(CONFIGS[name], PACKED_SDPA))
    layers = SHAPE["num_hidden_layers"]
    assert [(query, key) for query, key, _ in calls] == [(length, length) for length in LENGTHS] * layers
    for length, _, mask in calls:  # a mask, which rules the fast kernels out, only where a window cuts a sequence
        window_cuts = name == "mistral" and length > 4
        assert (mask is not None) == window_cuts


def test_no_mask_of_the_rows_size_is_built() -> None:
    arguments = packed_arguments(PACKED_SDPA, LENGTHS, CPU)
    assert arguments["attention_mask"].shape == (1, 1, 1, 1)
    assert arguments["sequence_lengths"] == LENGTHS


def test_arguments_of_flash_attention() -> None:
    arguments = packed_arguments("flash_attention_2", LENGTHS, CPU)
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert arguments[name].tolist() == [0, 9, 10, 27, 31]
        assert arguments[name].dtype == torch.int32
    assert arguments["max_length_q"] == arguments["max_length_k"] == 17


def test_a_model_that_drops_the_lengths_is_refused() -> None:
    tensors = [torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0)) for _ in range(3)]
    mask = packed_arguments(PACKED_SDPA, (2, 4), CPU)["attention_mask"]
    with pytest.raises(RuntimeError, match="Identity does not pass sequence_lengths on.*attn_implementation: sdpa"):
        packed_sdpa(nn.Identity(), *tensors, mask)
    model = build(StableLmConfig(**SHAPE), PACKED_SDPA)
    with pytest.raises(RuntimeError, match="StableLmAttention does not pass sequence_lengths on"):
        packed_logits(model)


def test_capped_scores_are_refused() -> None:
    model = build(Gemma2Config(**SHAPE, query_pre_attn_scalar=8), PACKED_SDPA)
    with pytest.raises(RuntimeError, match="Gemma2Attention caps its scores.*attn_implementation: eager"):
        model(input_ids=sequences()[0])


# torch's own kernel for whole rows, where there is a GPU -------------------------------------------------------------

HALF = torch.bfloat16


def row(heads: int, size: int = 16, dtype: torch.dtype = HALF, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(heads + size)
    return torch.randn(1, heads, sum(LENGTHS), size, generator=generator).to(device, dtype)


def varlen_oracle(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """What torch documents of `varlen_attn`, token by token: [T, heads, head_dim]."""
    assert query.shape[1] == key.shape[1] or enable_gqa
    assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32
    assert max_q == max_k == cu_seq_q.diff().max()
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    left, right = window_size
    assert right == 0
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    outputs = []
    for i in range(len(query)):
        start = int(cu_seq_q[cu_seq_q <= i].max())
        seen = slice(start if left < 0 else max(start, i - left), i + 1)
        weights = (scale * torch.einsum("hd,shd->hs", query[i].float(), key[seen].float())).softmax(-1)
        outputs.append(torch.einsum("hs,shd->hd", weights, value[seen].float()).to(query.dtype))
    return torch.stack(outputs)


@pytest.mark.parametrize("window", [None, 1, 4, 9, 17, 99])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_arguments_of_varlen_attn(window: int | None, heads: tuple[int, int], scaling: float | None) -> None:
    tensors = row(heads[0]), row(heads[1]), row(heads[1], 16).flip(2)
    expected, _ = packed_sdpa(
        nn.Identity(), *(tensor.float().repeat_interleave(4 // tensor.shape[1], dim=1) for tensor in tensors), None,
        sequence_lengths=LENGTHS, sliding_window=window, scaling=scaling,
    )  # fmt: skip
    actual = varlen_oracle(**varlen_arguments(*tensors, LENGTHS, window, {"scaling": scaling}))
    torch.testing.assert_close(actual.float(), expected[0], atol=0.02, rtol=0.02)


def test_autocast_is_what_varlen_attn_does_not_know() -> None:
    """Rotary embeddings leave queries and keys in float32 beside values in half precision."""
    tensors = row(4, dtype=torch.float32), row(4, dtype=torch.float32), row(4)
    assert not fits_varlen(*tensors, {}, on_gpu=True)
    with torch.autocast("cpu", HALF):
        assert fits_varlen(*tensors, {}, on_gpu=True)
        arguments = varlen_arguments(*tensors, LENGTHS, None, {})
    assert {arguments[name].dtype for name in ("query", "key", "value")} == {HALF}


@pytest.mark.parametrize(
    ("size", "dtype", "options", "fits"),
    [
        (64, HALF, {"dropout": 0.0, "scaling": 0.1}, True),
        (256, torch.float16, {}, True),
        (264, HALF, {}, False),
        (20, HALF, {}, False),
        (64, torch.float32, {}, False),
        (64, HALF, {"dropout": 0.1}, False),
        (64, HALF, {"s_aux": torch.zeros(4)}, False),
        (64, HALF, {"softcap": 50.0}, False),
        (64, HALF, {"position_bias": torch.zeros(1)}, False),
    ],
)
def test_where_varlen_attn_serves(size: int, dtype: torch.dtype, options: dict[str, Any], fits: bool) -> None:
    tensors = [row(2, size, dtype)] * 3
    assert fits_varlen(*tensors, options, on_gpu=True) == fits
    assert not fits_varlen(*tensors, options)  # here is none
    assert not fits_varlen(*tensors[:2], row(2, 2 * size, dtype), options, on_gpu=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("window", [None, 4, 9])
def test_varlen_attn_equals_sdpa_a_sequence_at_a_time(window: int | None) -> None:
    """On a GPU, forward and backward, against float32."""
    leaves = [row(heads, 64, device="cuda").requires_grad_() for heads in (4, 2, 2)]
    assert fits_varlen(*leaves, {})
    module = nn.Identity()
    module.num_key_value_groups = 2
    results = []
    for dtype in (HALF, torch.float32):
        output, _ = packed_sdpa(module, *(x.to(dtype) for x in leaves), None, LENGTHS, window, scaling=0.2)
        results.append([output.float(), *torch.autograd.grad(output.float().square().sum(), leaves)])
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours.float(), expected.float(), atol=0.05, rtol=0.05)
