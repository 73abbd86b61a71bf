"""The student samples its own completions.

`RolloutEngine` is all that the trainer knows: prompts and seeds in, tokens with their log-probabilities out. A seed
belongs to one completion: it draws the same uniform number for position t wherever the prompt is sampled, so that a
resumed run repeats an undisturbed one.

`TransformersRollout` samples with the training model itself. It has its own decoding loop because `generate` would
take the checkpoint's generation defaults (temperature 0.6, top-k 20, … in Qwen3) for what the recipe leaves out,
which biases the gradient with no error, has one global random state for all rows, and keeps computing rows that ended.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vopd_recipes.console import screen
from vopd_recipes.models import FullCopy, causal_lm_of, shards_weights
from vopd_recipes.recipe import VOPDConfig
from vopd_recipes.rollout.engine import Completion, Sampling, Wanted

logger = logging.getLogger(__name__)

# Up to this many tokens a rollout is short whatever samples it.
_SHORT = 256

# Rows that ended are cut from the cache when they are this share of it: cutting copies the rest.
_COMPACT_BELOW = 0.75


def build(wanted: Wanted) -> TransformersRollout:
    """The engine of `rollout_backend: transformers`."""
    student, accelerator, args = wanted.student, wanted.accelerator, wanted.args
    if accelerator.is_main_process and (notice := slow_notice(accelerator.device.type, args)):
        logger.warning(notice)
    return TransformersRollout(
        model=lambda: student,
        eos_token_ids=wanted.eos_token_ids,
        vocabulary=wanted.vocabulary,
        sampling=wanted.sampling,
        batch_size=args.rollout_batch_size,
        progress=wanted.progress,
        copy=FullCopy(student, accelerator.device) if shards_weights(accelerator) else None,
    )


def slow_notice(device: str, args: VOPDConfig) -> str | None:
    """What long completions cost on a GPU without vLLM, or `None` where they are short or there is no GPU."""
    if device != "cuda" or args.max_completion_length <= _SHORT:
        return None
    return (
        f"rollout_backend: transformers samples up to {args.max_completion_length} tokens with a forward of the whole "
        "model for each: vLLM was 2.3 times as fast in float32 and 3.5 in bfloat16, on two CPU cores "
        "(docs/smollm2-135m.md; not yet measured on a GPU); set rollout_backend: vllm"
    )


class TransformersRollout:
    """Sample with the training model itself, which is always in sync, or with a full copy where it is sharded.

    Args:
        model: gives the causal language model, in evaluation mode.
        eos_token_ids: tokens that end a completion.
        vocabulary: tokens from this id on are never drawn: the teacher does not know them.
        sampling: temperature and truncation.
        batch_size: completions sampled at a time.
        progress: show a progress bar.
        copy: of a student that no process holds whole; it has weights from `sync` to the end of `generate`.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        eos_token_ids: set[int],
        vocabulary: int,
        sampling: Sampling,
        batch_size: int,
        progress: bool = False,
        copy: FullCopy | None = None,
    ) -> None:
        self._model = model
        self._copy = copy
        self.stale = copy is not None
        self._eos_token_ids = torch.tensor(sorted(eos_token_ids))
        self._vocabulary = vocabulary
        self._sampling = sampling
        self._batch_size = batch_size
        self._progress = progress

    def sync(self, named_weights: Iterable[tuple[str, Tensor]]) -> None:
        """Fill the copy; without one the weights are the training model's own."""
        if self._copy is not None:
            self._copy.fill(named_weights)
            self.stale = False

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int) -> list[Completion]:
        """One completion per prompt, in order; prompts of like length are sampled together."""
        model = self._copy.model if self._copy is not None else self._model()
        completions: list[Completion | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        bar = screen.bar(total=len(prompts), desc="Sampling", leave=False, disable=not self._progress)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            decoding = _Decoding(model, [prompts[i] for i in rows], [seeds[i] for i in rows], max_new_tokens)
            sampled = decoding.run(self._eos_token_ids.to(model.device), self._vocabulary, self._sampling)
            for i, completion in zip(rows, sampled):
                completions[i] = completion
            bar.update(len(rows))
        bar.close()
        if self._copy is not None:
            self._copy.release()
            self.stale = True
        return [completion for completion in completions if completion is not None]


class _Decoding:
    """The state of one batch of rows, left-padded, that shrinks as rows end."""

    def __init__(self, model: Any, prompts: list[list[int]], seeds: list[int], max_new_tokens: int) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        width = max(map(len, prompts))
        padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        present = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self.tokens = torch.tensor(padded, device=model.device)  # [rows, width], then [rows, 1]
        self.mask = torch.tensor(present, device=model.device)
        self.uniforms = torch.stack([_uniforms(seed, max_new_tokens) for seed in seeds]).to(model.device)
        self.rows = torch.arange(len(prompts), device=model.device)  # which prompt each row continues
        self.cache = DynamicCache(config=model.config)
        self.without_attention = "cache_params" in inspect.signature(causal_lm_of(model).forward).parameters  # Mamba
        shape = (len(prompts), max_new_tokens)
        self.token_ids = torch.zeros(shape, dtype=torch.long, device=model.device)
        self.logprobs = torch.zeros(shape, device=model.device)
        self.lengths = torch.full(shape[:1], max_new_tokens, device=model.device)
        self.finished = torch.zeros(shape[:1], dtype=torch.bool, device=model.device)

    def run(self, eos_token_ids: Tensor, vocabulary: int, sampling: Sampling) -> list[Completion]:
        for step in range(self.max_new_tokens):
            logits = self._forward()[:, :vocabulary]
            chosen, logprobs = draw(logits, self.uniforms[:, step], sampling)
            self.token_ids[self.rows, step] = chosen
            self.logprobs[self.rows, step] = logprobs
            ended = torch.isin(chosen, eos_token_ids) & ~self.finished[self.rows]
            self.finished[self.rows[ended]] = True
            self.lengths[self.rows[ended]] = step + 1
            self.tokens = chosen[:, None]
            self.mask = torch.cat([self.mask, torch.ones_like(self.tokens)], dim=1)
            if not self._drop_finished():
                break
        return self._completions()

    def _forward(self) -> Tensor:
        """Logits [rows, V] of the next token, in float32."""
        width = self.tokens.shape[1]
        state: dict[str, Any] = {"past_key_values": self.cache, "attention_mask": self.mask}
        if self.without_attention:
            state = {"cache_params": self.cache, "attention_mask": self.mask[:, -width:]}
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -width:]
        output = self.model(input_ids=self.tokens, position_ids=positions, use_cache=True, logits_to_keep=1, **state)
        return output.logits[:, -1].float()

    def _drop_finished(self) -> bool:
        """Cut ended rows out once they are many; whether any row goes on."""
        going_on = ~self.finished[self.rows]
        alive = int(going_on.sum())
        if 0 < alive <= _COMPACT_BELOW * len(self.rows):
            keep = going_on.nonzero()[:, 0]
            # `batch_select_indices` forgets the states of recurrent layers
            self.cache.reorder_cache(keep)  # type: ignore[arg-type]
            self.rows, self.tokens, self.mask = self.rows[keep], self.tokens[keep], self.mask[keep]
            self.uniforms = self.uniforms[keep]
        return alive > 0

    def _completions(self) -> list[Completion]:
        token_ids, logprobs = self.token_ids.tolist(), self.logprobs.tolist()
        finished = self.finished.tolist()
        return [
            Completion(token_ids[row][:length], logprobs[row][:length], finished[row])
            for row, length in enumerate(self.lengths.tolist())
        ]


def _uniforms(seed: int, count: int) -> Tensor:
    """The numbers in [0, 1) that decide a completion; from the CPU's generator, so alike on every device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution: the first token whose cumulated probability exceeds u.

    Args:
        logits: [rows, V].
        uniforms: [rows] in [0, 1).
        sampling: temperature and truncation.

    Returns:
        Tokens [rows] and their log-probabilities [rows] under the distribution they were drawn from.
    """
    logp = (truncate(logits, sampling) / sampling.temperature).log_softmax(-1)
    cumulative = logp.double().exp().cumsum(-1)
    # Rounding leaves the total a little off 1; a token of probability zero is never the first to exceed.
    threshold = uniforms.double()[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, threshold, right=True).clamp_max(logits.shape[1] - 1)
    return chosen[:, 0], logp.gather(1, chosen)[:, 0]


def truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits outside top-k and top-p (after the temperature) become -inf."""
    if sampling.top_k:
        kept = logits.topk(min(sampling.top_k, logits.shape[1]), dim=-1)
        logits = logits.masked_fill(logits < kept.values[:, -1:], -torch.inf)
    if sampling.top_p < 1:
        ranked = (logits / sampling.temperature).softmax(-1).sort(dim=-1, descending=True)
        before = ranked.values.cumsum(-1) - ranked.values
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ranked.indices, before >= sampling.top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits
