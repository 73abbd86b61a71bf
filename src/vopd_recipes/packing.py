"""Completions become balanced, padding-free micro-batches.

A micro-batch is one row: its sequences stand end to end, `position_ids` restart at each, and nothing is padding. The
sequences of an accumulation window go to its micro-batches longest first, each to the one with fewest tokens so far,
so that devices and steps finish together. The last token of a completion is predicted but predicts nothing, so it
is a target and never an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Sample:
    """A prompt with one of its completions, and what the update learnt about every completion token."""

    prompt_id: int
    prompt_ids: list[int]
    completion_ids: list[int]
    rollout_logprobs: list[float]
    finished: bool
    teacher: str | None = None  # whose prompt it is, where there are several
    teacher_prompt_ids: list[int] | None = None  # what its teacher reads in the prompt's place
    statistics: dict[str, list[float]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Input tokens in a packed row."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1


@dataclass(frozen=True)
class MicroBatch:
    """One packed row of T input tokens, N of which predict a completion token."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T], from 0 in each sequence
    completion_positions: Tensor  # [N] the inputs whose logits predict `targets`
    targets: Tensor  # [N]
    rollout_logprobs: Tensor  # [N]
    sequence_lengths: tuple[int, ...]
    samples: tuple[Sample, ...]

    def to(self, device: torch.device) -> MicroBatch:
        """The same row on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return MicroBatch(**{**vars(self), **tensors})

    def read_by(self, teacher: str | None) -> MicroBatch:
        """The row that a teacher reads: completions of its own prompts, in the same order, after its own prompts."""
        own = [sample for sample in self.samples if sample.teacher == teacher]
        return _row([replace(sample, prompt_ids=sample.teacher_prompt_ids or sample.prompt_ids) for sample in own])

    def tokens_of(self, teacher: str | None) -> Tensor:
        """Which of the N tokens are a teacher's, [n]: the order of `read_by`."""
        lengths = torch.tensor([len(sample.completion_ids) for sample in self.samples], dtype=torch.long)
        own = torch.tensor([sample.teacher == teacher for sample in self.samples], dtype=torch.bool)
        return own.repeat_interleave(lengths).nonzero()[:, 0].to(self.targets.device)

    def record(self, statistics: dict[str, Tensor]) -> None:
        """Hand each sample its completion's part of some [N] statistics."""
        lengths = [len(sample.completion_ids) for sample in self.samples]
        for name, values in statistics.items():
            for sample, part in zip(self.samples, values.cpu().split(lengths)):
                sample.statistics[name] = part.tolist()


def pack(samples: Sequence[Sample], count: int) -> list[MicroBatch]:
    """Exactly `count` micro-batches, balanced by tokens; one without samples holds a token that predicts nothing."""
    bins: list[list[Sample]] = [[] for _ in range(count)]
    tokens = [0] * count
    for sample in sorted(samples, key=lambda sample: -sample.length):
        if sample.completion_ids:
            lightest = tokens.index(min(tokens))
            bins[lightest].append(sample)
            tokens[lightest] += sample.length
    return [_row(members) for members in bins]


def _row(samples: list[Sample]) -> MicroBatch:
    inputs: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    logprobs: list[float] = []
    lengths: list[int] = []
    for sample in samples:
        first = len(inputs) + len(sample.prompt_ids) - 1
        predicting.extend(range(first, first + len(sample.completion_ids)))
        inputs.extend(sample.prompt_ids + sample.completion_ids[:-1])
        positions.extend(range(sample.length))
        targets.extend(sample.completion_ids)
        logprobs.extend(sample.rollout_logprobs)
        lengths.append(sample.length)
    if not samples:  # every rank must run every forward, or collective operations wait for ever
        inputs, positions, lengths = [0], [0], [1]
    return MicroBatch(
        input_ids=torch.tensor([inputs]),
        position_ids=torch.tensor([positions]),
        completion_positions=torch.tensor(predicting, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        rollout_logprobs=torch.tensor(logprobs, dtype=torch.float32),
        sequence_lengths=tuple(lengths),
        samples=tuple(samples),
    )
