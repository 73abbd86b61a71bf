"""What a sampler is: prompts and seeds in, tokens with their log-probabilities out.

A seed belongs to one completion and to nothing else: it draws the same numbers wherever the prompt is sampled, so that
a resumed run repeats an undisturbed one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn

from vopd_recipes.recipe import ModelConfig, VOPDConfig


@dataclass(frozen=True)
class Completion:
    """Sampled tokens, each with its log-probability in nats under the distribution it was drawn from."""

    token_ids: list[int]
    logprobs: list[float]
    finished: bool  # ended by itself; its last token is then the end-of-sequence token


class RolloutFailed(RuntimeError):
    """The sampler cannot continue; one line says why."""


class RolloutEngine(Protocol):
    """What the trainer asks of a sampler."""

    stale: bool  # has not got the student's weights, or lost them since

    def generate(self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int) -> list[Completion]:
        """One completion per prompt, in order."""

    def sync(self, named_weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the student's current weights."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; the defaults draw from the student's own distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Wanted:
    """What an engine is built from.

    Args:
        args: how much of the machine it may take, and how many completions it draws at a time.
        student: outside any distributed wrapper.
        accelerator: the trainer's.
        eos_token_ids: tokens that end a completion.
        vocabulary: tokens from this id on are never drawn.
        sampling: how a token is drawn.
        longest_prompt: in tokens; asked only where it matters, for it reads all of them.
        source: where the student came from; `None` is the path that it has in its configuration.
        progress: show a progress bar.
    """

    args: VOPDConfig
    student: nn.Module
    accelerator: Accelerator
    eos_token_ids: set[int]
    vocabulary: int
    sampling: Sampling
    longest_prompt: Callable[[], int]
    source: ModelConfig | None
    progress: bool


def rollout_seed(seed: int, step: int, prompt_id: int, generation: int) -> int:
    """A completion's seed: a 63-bit number that depends on nothing but these four."""
    digest = hashlib.blake2b(f"{seed}/{step}/{prompt_id}/{generation}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
