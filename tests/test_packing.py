"""A packed row holds every token once, and each target stands one after the input that predicts it."""

import random

import pytest
import torch

from vopd_recipes.packing import MicroBatch, Sample, pack


def make_samples(count: int, seed: int, longest: int = 40) -> list[Sample]:
    """Samples whose tokens are all different, so that none can be mistaken for another."""
    generator, token = random.Random(seed), iter(range(1, 10**6))
    samples = []
    for number in range(count):
        prompt = [next(token) for _ in range(generator.randint(1, longest))]
        completion = [next(token) for _ in range(generator.randint(1, longest))]
        logprobs = [-float(t) for t in completion]
        samples.append(Sample(number, prompt, completion, logprobs, finished=bool(number % 2)))
    return samples


def completions(batches: list[MicroBatch]) -> list[int]:
    return sorted(token for batch in batches for token in batch.targets.tolist())


@pytest.mark.parametrize(("number", "count"), [(1, 1), (5, 1), (16, 4), (17, 4), (3, 8), (64, 3)])
def test_every_completion_token_is_a_target_once(number: int, count: int) -> None:
    samples = make_samples(number, seed=number)
    batches = pack(samples, count)
    assert len(batches) == count
    assert completions(batches) == sorted(token for sample in samples for token in sample.completion_ids)
    packed = [sample for batch in batches for sample in batch.samples]
    assert sorted(sample.prompt_id for sample in packed) == list(range(number))


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_balanced_by_tokens(seed: int) -> None:
    samples = make_samples(48, seed)
    lengths = [batch.input_ids.shape[1] for batch in pack(samples, 6)]
    assert sum(lengths) == sum(sample.length for sample in samples)
    assert max(lengths) - min(lengths) <= max(sample.length for sample in samples)


def test_the_longest_go_first() -> None:
    samples = [Sample(n, [1] * length, [2], [-1.0], True) for n, length in enumerate([10] * 8 + [40])]
    assert [batch.input_ids.shape[1] for batch in pack(samples, 3)] == [40, 40, 40]


def test_positions_targets_and_lengths_line_up() -> None:
    samples = make_samples(20, seed=7)
    for batch in pack(samples, 3):
        inputs, start = batch.input_ids[0].tolist(), 0
        assert sum(batch.sequence_lengths) == len(inputs) == batch.position_ids.shape[1]
        for sample, length in zip(batch.samples, batch.sequence_lengths):
            # The row is the sequences end to end, without a token of padding.
            assert inputs[start : start + length] == (sample.prompt_ids + sample.completion_ids)[:-1]
            assert batch.position_ids[0, start : start + length].tolist() == list(range(length))
            start += length
        before = {
            token: previous
            for sample in batch.samples
            for previous, token in zip(
                [sample.prompt_ids[-1], *sample.completion_ids], sample.completion_ids
            )
        }  # fmt: skip
        for position, target, logprob in zip(
            batch.completion_positions.tolist(), batch.targets.tolist(), batch.rollout_logprobs.tolist()
        ):
            assert inputs[position] == before[target]
            assert logprob == -float(target)


def test_a_prompt_and_a_completion_of_one_token() -> None:
    (batch,) = pack([Sample(0, [5], [6], [-1.0], True)], 1)
    assert batch.input_ids.tolist() == [[5]]
    assert (batch.completion_positions.tolist(), batch.targets.tolist()) == ([0], [6])


@pytest.mark.parametrize("samples", [[], [Sample(0, [1, 2], [], [], False)]])
def test_micro_batches_without_samples(samples: list[Sample]) -> None:
    batches = pack(samples, 3)
    assert len(batches) == 3
    for batch in batches:
        assert batch.input_ids.shape == batch.position_ids.shape == (1, 1)
        assert batch.sequence_lengths == (1,)
        assert len(batch.targets) == len(batch.completion_positions) == len(batch.rollout_logprobs) == 0
        assert batch.targets.dtype == batch.completion_positions.dtype == torch.long
        batch.record({"reward": torch.zeros(0)})


def test_statistics_return_to_their_sample() -> None:
    samples = make_samples(9, seed=2)
    for batch in pack(samples, 2):
        batch.record({"reward": batch.targets.float() * 2, "advantage": batch.rollout_logprobs})
    for sample in samples:
        assert sample.statistics["reward"] == [2.0 * token for token in sample.completion_ids]
        assert sample.statistics["advantage"] == sample.rollout_logprobs


def test_moving_a_row_keeps_what_it_holds() -> None:
    (batch,) = pack(make_samples(4, seed=0), 1)
    moved = batch.to(torch.device("meta"))
    assert all(value.device.type == "meta" for value in vars(moved).values() if isinstance(value, torch.Tensor))
    assert (moved.samples, moved.sequence_lengths) == (batch.samples, batch.sequence_lengths)
