"""Two ways to draw completions: transformers, and vLLM in this process. Both take the same requests.

A request is a prompt with all the samples that are wanted of it. Sample i of a request is drawn with seed `seed + i`
in both engines (vLLM's `n` does the same), whatever else is drawn beside it. Checkpoints' own generation settings
(temperature 0.6, top-k 20, … in Qwen3) are not used: the protocol decides. Adapters are applied on the side; the base
weights stay as they are.
"""

from __future__ import annotations

import importlib.util
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from evaluation.checkpoint import Checkpoint
from evaluation.protocol import Drawing
from evaluation.responses import Response
from vopd_recipes.recipe import RecipeError, one_line
from vopd_recipes.rollout import Sampling, TransformersRollout, start_vllm

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM 0.32 takes as max_lora_rank


@dataclass(frozen=True)
class Request:
    """Completions `first` to `first + count - 1` of a prompt.

    Args:
        key: of the question.
        token_ids: the prompt.
        seed: of the question's sample 0.
        first: number of the first sample that is wanted.
        count: how many are wanted.
        drawing: how they are drawn.
    """

    key: str
    token_ids: list[int]
    seed: int
    first: int
    count: int
    drawing: Drawing


class Engine(Protocol):
    """What the adapter asks of a sampler."""

    def run(self, requests: list[Request]) -> Iterator[list[tuple[Request, Response]]]:
        """Every sample of every request, in batches, each as soon as it is there."""


def start(
    backend: str, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, dtype: str, batch_size: int, length: int
) -> Engine:
    """Load the weights.

    Args:
        backend: `transformers` or `vllm`.
        checkpoint: whose weights.
        tokenizer: its.
        dtype: of the weights: `float32`, `bfloat16` or `float16`.
        batch_size: completions that are drawn at a time.
        length: tokens of the longest prompt and its completion together.

    Raises:
        RecipeError: the weights cannot be loaded.
    """
    try:
        match backend:
            case "transformers":
                return TransformersEngine(checkpoint, tokenizer, dtype, batch_size)
            case "vllm":
                return VLLMEngine(checkpoint, tokenizer, dtype, batch_size, length)
        raise ValueError("no such backend")
    except Exception as error:  # loaders raise what they like; each becomes one line
        reason = f"{type(error).__name__}: {one_line(error, 400)}"
        raise RecipeError(f"BACKEND: {backend} cannot load {checkpoint.name}: {reason}") from error


def room_for(rank: int) -> int:
    """The smallest `max_lora_rank` that vLLM takes for an adapter.

    Raises:
        ValueError: there is none.
    """
    if rank > _LORA_RANKS[-1]:
        raise ValueError(
            f"rank {rank} is above vLLM's {_LORA_RANKS[-1]}; use BACKEND=transformers, or merge the adapter"
        )
    return next(allowed for allowed in _LORA_RANKS if rank <= allowed)


def default_backend() -> str:
    """vLLM where it is installed."""
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"


def default_dtype() -> str:
    """bfloat16 on a GPU, float32 elsewhere."""
    return "bfloat16" if torch.cuda.is_available() else "float32"


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """A completion's text, without special tokens; `<think>` is none."""
    text = str(tokenizer.decode(token_ids, skip_special_tokens=True))
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate fits into no file


def _answered(
    request: Request, sample: int, tokenizer: PreTrainedTokenizerBase, ids: list[int], finished: bool, seconds: float
) -> tuple[Request, Response]:
    return request, Response(request.key, sample, text_of(tokenizer, ids), len(ids), finished, seconds)


class TransformersEngine:
    """Draw with transformers, a batch of rows of like length at a time.

    Raises:
        ValueError: weights are missing.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, dtype: str, batch_size: int
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.model_folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
        model, info = loaded
        if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} first")
        if checkpoint.base is not None:
            model = PeftModel.from_pretrained(model, str(checkpoint.folder))
        self._model = model.to(device).eval()
        self._tokenizer = tokenizer
        self._end_tokens = set(checkpoint.end_tokens(tokenizer))
        self._batch_size = batch_size

    def run(self, requests: list[Request]) -> Iterator[list[tuple[Request, Response]]]:
        """Batches in a fixed order, so that one which is drawn again is the same batch."""
        by_drawing: dict[Drawing, list[tuple[Request, int]]] = defaultdict(list)
        for request in requests:
            samples = range(request.first, request.first + request.count)
            by_drawing[request.drawing] += [(request, sample) for sample in samples]
        for drawing, rows in by_drawing.items():
            rows.sort(key=lambda row: (len(row[0].token_ids), row[0].key, row[1]))
            for first in range(0, len(rows), self._batch_size):
                yield self._batch(drawing, rows[first : first + self._batch_size])

    def _batch(self, drawing: Drawing, rows: list[tuple[Request, int]]) -> list[tuple[Request, Response]]:
        started = time.perf_counter()
        rollout = TransformersRollout(
            lambda: self._model,
            self._end_tokens,
            self._model.config.get_text_config().vocab_size,
            Sampling(drawing.temperature, drawing.top_p, drawing.top_k),
            self._batch_size,
        )
        drawn = rollout.generate(
            [request.token_ids for request, _ in rows],
            [request.seed + sample for request, sample in rows],
            drawing.max_new_tokens,
        )
        seconds = (time.perf_counter() - started) / len(rows)
        return [
            _answered(request, sample, self._tokenizer, completion.token_ids, completion.finished, seconds)
            for (request, sample), completion in zip(rows, drawn)
        ]


class VLLMEngine:
    """Draw with vLLM: all requests go in at once, and each is handed on when its last sample is done."""

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, dtype: str, batch_size: int, length: int
    ) -> None:
        on_gpu = torch.cuda.is_available()
        adapter = checkpoint.base is not None
        lora: dict[str, Any] = {}
        if adapter:
            lora = {"enable_lora": True, "max_lora_rank": room_for(checkpoint.adapter_rank())}
        self._vllm, self._llm = start_vllm(
            on_gpu,
            length,
            model=str(checkpoint.model_folder),
            dtype=dtype,
            max_num_seqs=batch_size,
            gpu_memory_utilization=0.9 if on_gpu else 0.2,
            **lora,
        )
        requests = self._vllm.lora.request
        self._adapter = requests.LoRARequest("adapter", 1, str(checkpoint.folder)) if adapter else None
        self._tokenizer = tokenizer
        self._end_tokens = checkpoint.end_tokens(tokenizer)

    def run(self, requests: list[Request]) -> Iterator[list[tuple[Request, Response]]]:
        """As each request is done."""
        # longest first: the engine has work for all its places until the last tokens
        order = sorted(requests, key=lambda request: -len(request.token_ids) - request.drawing.max_new_tokens)
        names = self._llm.enqueue(
            [{"prompt_token_ids": request.token_ids} for request in order],
            [self._parameters(request) for request in order],
            lora_request=self._adapter,
            use_tqdm=False,
        )
        # the engine makes a name unique by a suffix, and gives outputs the name without it
        waiting = {name.partition("-")[0]: request for name, request in zip(names, order)}
        last = time.perf_counter()
        while self._llm.llm_engine.has_unfinished_requests():
            done = [output for output in self._llm.llm_engine.step() if output.finished]
            count = sum(len(output.outputs) for output in done)
            if count:
                seconds, last = (time.perf_counter() - last) / count, time.perf_counter()
                yield [
                    _answered(request, request.first + drawn.index, self._tokenizer, list(drawn.token_ids),
                              drawn.finish_reason == "stop", seconds)
                    for output in done for request in [waiting[output.request_id]] for drawn in output.outputs
                ]  # fmt: skip

    def _parameters(self, request: Request) -> Any:
        drawing = request.drawing
        return self._vllm.SamplingParams(
            n=request.count,
            seed=request.seed + request.first,
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            top_k=drawing.top_k,
            max_tokens=drawing.max_new_tokens,
            stop_token_ids=self._end_tokens,
            detokenize=False,
        )
