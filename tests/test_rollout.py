"""Completions come from the student's own distribution, and a seed decides one wherever it is sampled."""

import copy
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, sharpened
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from vopd_recipes.models import PACKED_SDPA
from vopd_recipes.recipe import VOPDConfig
from vopd_recipes.rollout import Completion, Sampling, TransformersRollout, draw
from vopd_recipes.rollout.transformers_engine import slow_notice, truncate
from vopd_recipes.tiny import pair as tiny

PLAIN = Sampling()
SOME_ENDS = set(range(0, 256, 8))  # an eighth of the bytes end a completion, so that lengths differ
PROMPTS = [[10 + n, *range(40, 40 + 3 * n)] for n in range(12)]
SEEDS = [1000 + n for n in range(12)]


@pytest.fixture(scope="module")
def student(tiny_pair: TinyPair) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_pair.student, attn_implementation=PACKED_SDPA)


@pytest.fixture(scope="module")
def windowed() -> PreTrainedModel:
    """A model whose cache forgets: it sees 8 tokens back."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, attn_implementation=PACKED_SDPA,
    )  # fmt: skip
    return sharpened(MistralForCausalLM(config))


def rollout(
    model: PreTrainedModel, ends: set[int] = SOME_ENDS, vocabulary: int = 264, batch_size: int = 64
) -> TransformersRollout:
    return TransformersRollout(lambda: model, ends, vocabulary, PLAIN, batch_size)


def fresh_logprobs(model: PreTrainedModel, prompt: list[int], completion: Completion, vocabulary: int = 264) -> Tensor:
    """Log-probabilities of the completion's tokens from one forward without cache or padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion.token_ids]), use_cache=False).logits[0]
    logp = logits[len(prompt) - 1 : -1, :vocabulary].float().log_softmax(-1)
    return logp.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


# Whole completions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["student", "windowed"])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_log_probabilities_are_the_models(name: str, batch_size: int, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    completions = rollout(model, batch_size=batch_size).generate(PROMPTS, SEEDS, 24)
    assert len({len(completion.token_ids) for completion in completions}) > 3
    for prompt, completion in zip(PROMPTS, completions):
        expected = fresh_logprobs(model, prompt, completion)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["student", "windowed"])
def test_a_seed_decides_its_completion(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    together = [completion.token_ids for completion in rollout(model).generate(PROMPTS, SEEDS, 24)]
    alone = [
        rollout(model).generate([prompt], [seed], 24)[0].token_ids for prompt, seed in zip(PROMPTS[::4], SEEDS[::4])
    ]
    assert alone == together[::4]
    in_threes = rollout(model, batch_size=3).generate(PROMPTS, SEEDS, 24)
    assert [completion.token_ids for completion in in_threes] == together
    reversed_ = rollout(model).generate(PROMPTS[::-1], SEEDS[::-1], 24)
    assert [completion.token_ids for completion in reversed_[::-1]] == together
    others = rollout(model).generate(PROMPTS, [seed + 1 for seed in SEEDS], 24)
    assert all(completion.token_ids != tokens for completion, tokens in zip(others, together))


def test_a_longer_limit_continues_the_same_completion(student: PreTrainedModel) -> None:
    short, long = (rollout(student).generate(PROMPTS, SEEDS, limit) for limit in (6, 30))
    for few, many in zip(short, long):
        assert many.token_ids[: len(few.token_ids)] == few.token_ids
        assert not few.finished or few == many


def test_the_end_token_ends_and_is_kept(student: PreTrainedModel) -> None:
    completions = rollout(student).generate(PROMPTS * 4, list(range(48)), 10)
    assert {completion.finished for completion in completions} == {True, False}
    for completion in completions:
        assert len(completion.token_ids) == len(completion.logprobs)
        assert not SOME_ENDS & set(completion.token_ids[:-1])
        assert completion.finished == (completion.token_ids[-1] in SOME_ENDS)
        assert completion.finished or len(completion.token_ids) == 10


def test_limits_of_one_token_and_of_no_prompt(student: PreTrainedModel) -> None:
    (only,) = rollout(student).generate([[7]], [0], 1)
    assert len(only.token_ids) == 1
    assert rollout(student).generate([], [], 5) == []


def test_generation_defaults_of_the_checkpoint_have_no_effect(student: PreTrainedModel) -> None:
    model = copy.deepcopy(student)
    before = rollout(model).generate(PROMPTS, SEEDS, 16)
    model.generation_config.update(temperature=0.1, top_k=1, repetition_penalty=5.0, do_sample=True, min_new_tokens=9)
    assert rollout(model).generate(PROMPTS, SEEDS, 16) == before
    assert len({tuple(completion.token_ids) for completion in before}) == len(PROMPTS)


def test_no_global_random_state_is_read_or_changed(student: PreTrainedModel) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = rollout(student).generate(PROMPTS[:3], SEEDS[:3], 8)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert rollout(student).generate(PROMPTS[:3], SEEDS[:3], 8) == first


def test_tokens_beyond_the_shared_vocabulary_are_never_drawn() -> None:
    model = sharpened(tiny.tiny_qwen3(32, 1, seed=3, tie_word_embeddings=False))
    model.lm_head.bias = nn.Parameter(torch.zeros(264).index_fill(0, torch.arange(257, 264), 20.0))
    wild = rollout(model, ends=set()).generate(PROMPTS, SEEDS, 8)
    assert all(token >= 257 for completion in wild for token in completion.token_ids)
    tame = rollout(model, ends=set(), vocabulary=257).generate(PROMPTS, SEEDS, 8)
    for prompt, completion in zip(PROMPTS, tame):
        assert max(completion.token_ids) < 257
        expected = fresh_logprobs(model, prompt, completion, vocabulary=257)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_sampled_first_tokens_follow_the_model(student: PreTrainedModel) -> None:
    """4,000 seeds of one prompt, through the whole sampler, against the model's own probabilities."""
    completions = rollout(student, batch_size=4000).generate([[65, 66, 67]] * 4000, list(range(4000)), 1)
    with torch.no_grad():
        probabilities = student(input_ids=torch.tensor([[65, 66, 67]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=264)
    chi_square = ((counts - 4000 * probabilities) ** 2 / (4000 * probabilities)).sum().item()
    assert chi_square < 263 + 5 * math.sqrt(2 * 263)  # five standard deviations above its mean


# One draw ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(0.7), Sampling(1.3, top_p=0.8), Sampling(0.6, 0.95, 5)])
def test_frequencies_follow_the_softmax(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(1, 12, generator=generator)
    uniforms = torch.rand(20_000, generator=generator, dtype=torch.float64)
    tokens, logprobs = draw(logits.expand(20_000, -1), uniforms, sampling)
    expected = truncated_distribution(logits[0].tolist(), sampling)
    frequencies = torch.bincount(tokens, minlength=12).double() / 20_000
    assert 0.5 * (frequencies - expected).abs().sum() < 0.015
    torch.testing.assert_close(logprobs.double(), expected.log()[tokens], atol=1e-5, rtol=1e-5)


def truncated_distribution(logits: list[float], sampling: Sampling) -> Tensor:
    """The definition, a token at a time: temperature, then the k most likely, then the fewest that hold top-p."""
    weights = {token: math.exp(logit / sampling.temperature) for token, logit in enumerate(logits)}
    ranked = sorted(weights, key=lambda token: -weights[token])[: sampling.top_k or None]
    total, kept, mass = sum(weights[token] for token in ranked), [], 0.0
    for token in ranked:
        if mass >= sampling.top_p:
            break
        kept.append(token)
        mass += weights[token] / total
    total = sum(weights[token] for token in kept)
    return torch.tensor([weights[t] / total if t in kept else 0.0 for t in range(len(logits))], dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), itertools.product([0.3, 1.0, 2.0], [0.1, 0.5, 0.9, 1.0], [0, 1, 4, 100])
)
def test_truncation_is_its_definition(temperature: float, top_p: float, top_k: int) -> None:
    sampling = Sampling(temperature, top_p, top_k)
    logits = 2 * torch.randn(8, 30, generator=torch.Generator().manual_seed(5))
    actual = (truncate(logits, sampling) / temperature).softmax(-1).double()
    expected = torch.stack([truncated_distribution(row, sampling) for row in logits.tolist()])
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(uniform: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(2000, 50, generator=generator)
    logits[:, :3] = logits[:, -3:] = -torch.inf  # no probability where a draw at an end would fall
    logits = logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.3, -torch.inf)
    tokens, logprobs = draw(logits, torch.full((2000,), uniform, dtype=torch.float64), PLAIN)
    possible = logits > -torch.inf
    assert possible.gather(1, tokens[:, None]).all()
    assert logprobs.isfinite().all()
    if uniform == 0:
        assert torch.equal(tokens, possible.int().argmax(1))


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([[0.125, 0.0, 0.5, 0.375]])
    uniforms = torch.tensor([0.0, 0.1, 0.13, 0.6, 0.63, 0.99], dtype=torch.float64)
    tokens, logprobs = draw(probabilities.log().expand(6, -1), uniforms, PLAIN)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    torch.testing.assert_close(logprobs, probabilities[0].log()[tokens])


# Said ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "tokens", "said"), [("cuda", 257, True), ("cuda", 9, False), ("cpu", 4096, False)])
def test_what_long_rollouts_cost_on_a_gpu_is_said(device: str, tokens: int, said: bool, tmp_path: Path) -> None:
    args = VOPDConfig(output_dir=str(tmp_path), use_cpu=True, max_completion_length=tokens)
    notice = slow_notice(device, args)
    assert bool(notice) == said
    if notice:
        measured = (Path(__file__).parents[1] / "docs" / "smollm2-135m.md").read_text()
        for times in re.findall(r"([\d.]+) (?:times|in bfloat16)", notice):
            assert f"{times} times" in measured
