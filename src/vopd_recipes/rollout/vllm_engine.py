"""The student samples in vLLM, inside the training process.

vLLM's own `external_launcher` puts one engine into every process (or one over `tensor_parallel_size` neighbours), so
rollouts need no server, no files and no second copy of the launcher. A whole window of prompts goes in as one call,
the longest prompts first: the engine's scheduler then always has work until the window's last tokens. On a GPU the
engine sleeps between rollouts and gives its memory, weights included, back to training; `sync` streams the student's
current weights in before the next one, tensor by tensor.

Three defaults of vLLM would train something else: a checkpoint's generation settings (temperature 0.6, top-k 20, … in
Qwen3) in place of the recipe's, log-probabilities before temperature and truncation, and one seed for all requests.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from vopd_recipes.console import screen
from vopd_recipes.models import base_of, causal_lm_of, checkpoint_weights, unsharded
from vopd_recipes.recipe import ModelConfig, RecipeError, free_port, one_line
from vopd_recipes.rollout.engine import Completion, RolloutFailed, Sampling, Wanted
from vopd_recipes.rollout.shared_process import EngineSettings, variables_restored
from vopd_recipes.rollout.vllm_start import start_vllm

_Request = TypeVar("_Request")

# Of one request, in the engine that GPUs run.
_MAX_BIASES = 1024


def build(wanted: Wanted) -> VLLMRollout:
    """The engine of `rollout_backend: vllm`."""
    args, config = wanted.args, causal_lm_of(wanted.student).config
    source = wanted.source or ModelConfig(model_name_or_path=config._name_or_path)
    # an adapter that the student starts from comes with the first hand-over
    base = base_of(wanted.student, source)
    # the recipe's bf16, or the launcher's
    half = "bfloat16" if wanted.accelerator.mixed_precision == "bf16" else None
    return VLLMRollout(
        model=str(base.model_name_or_path),
        revision=base.model_revision,
        device=wanted.accelerator.device,
        dtype=args.vllm_dtype or half or str(config.dtype).removeprefix("torch."),
        eos_token_ids=wanted.eos_token_ids,
        vocabulary=wanted.vocabulary,
        sampling=wanted.sampling,
        max_model_len=args.vllm_max_model_len or wanted.longest_prompt() + args.max_completion_length,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        enforce_eager=args.vllm_enforce_eager,
        max_num_seqs=args.rollout_batch_size,
        trust_remote_code=source.trust_remote_code,
        seed=args.seed,
        as_saved=partial(checkpoint_weights, wanted.student),
        progress=wanted.progress,
    )


class VLLMRollout:
    """A `RolloutEngine` on vLLM. Collective under tensor parallelism; kept until the process ends.

    Args:
        model: Hub id or folder that the first weights are loaded from; of a folder without weights the engine has
            none until `sync`.
        revision: of a Hub id.
        device: of the training process.
        dtype: of vLLM's weights: `float32`, `bfloat16` or `float16`.
        eos_token_ids: tokens that end a completion.
        vocabulary: tokens from this id on are never drawn: the teacher does not know them.
        sampling: temperature and truncation.
        max_model_len: prompt and completion together, in tokens.
        gpu_memory_utilization: share of the device that the engine may fill while it samples.
        tensor_parallel_size: neighbouring processes that share an engine.
        enforce_eager: no CUDA graphs; `None` is only on CPUs.
        max_num_seqs: completions sampled at a time by an engine.
        trust_remote_code: run model code that comes with the weights.
        seed: of the engine; each completion has its own.
        as_saved: gives the student's weights the names and parts that its checkpoint has; default: they have them.
        progress: show a progress bar.

    Raises:
        RecipeError: vLLM is not installed, or does not start with these settings.
    """

    def __init__(
        self,
        *,
        model: str,
        revision: str | None,
        device: torch.device,
        dtype: str,
        eos_token_ids: set[int],
        vocabulary: int,
        sampling: Sampling,
        max_model_len: int,
        gpu_memory_utilization: float,
        tensor_parallel_size: int = 1,
        enforce_eager: bool | None = None,
        max_num_seqs: int = 64,
        trust_remote_code: bool = False,
        seed: int = 0,
        as_saved: Callable[[Iterable[tuple[str, Tensor]]], Iterator[tuple[str, Tensor]]] = iter,
        progress: bool = False,
    ) -> None:
        self._on_gpu = device.type == "cuda"
        self._eos_token_ids = sorted(eos_token_ids)
        self.sampling = sampling
        self._max_model_len = max_model_len
        self._as_saved = as_saved
        self._progress = progress
        self._asleep: set[str] = set()  # what has no memory at the moment: weights, kv_cache
        self.stale = _has_no_weights(model)  # else they are the student's, until it takes a step
        self._settings = EngineSettings(device)
        before = torch.cuda.memory_allocated(device) if self._on_gpu else 0
        _check_installed()
        os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # `sync` hands a generator to it, in-process
        self._join_group(tensor_parallel_size)
        with variables_restored(), _single_process_variables(), self._settings(), _as_recipe_error(), unsharded():
            self._vllm, self._llm = start_vllm(
                self._on_gpu,
                max_model_len,
                enforce_eager,
                self._name,
                model=model,
                revision=revision,
                load_format="dummy" if self.stale else "auto",
                logprobs_mode="processed_logprobs",  # of the distribution that was drawn from
                dtype=dtype,
                max_num_seqs=max_num_seqs,
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel_size=tensor_parallel_size,
                distributed_executor_backend="external_launcher",
                enable_sleep_mode=self._on_gpu,
                hf_overrides={"head_dtype": "float32"} if self._on_gpu else None,  # logits as the loss has them
                trust_remote_code=trust_remote_code,
                seed=seed,
            )
        # Bytes that PyTorch's allocator counts as the engine's for ever, also while it sleeps and does not have them.
        self.counted_bytes = torch.cuda.memory_allocated(device) - before if self._on_gpu else 0
        self._has_head = all(self._llm.apply_model(_has_head))
        self._bias = _never(range(vocabulary, self._llm.llm_engine.model_config.get_vocab_size()))
        self._sleep()

    def _join_group(self, tensor_parallel_size: int) -> None:
        """vLLM joins the process group that is there; without one it would start engines that never meet."""
        if not distributed.is_initialized():
            address = f"tcp://127.0.0.1:{free_port()}"
            backend = "nccl" if self._on_gpu else "gloo"
            distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
        world, rank, size = distributed.get_world_size(), distributed.get_rank(), tensor_parallel_size
        if world % size:
            raise RecipeError(f"vllm_tensor_parallel_size: {size} does not divide the {world} processes")
        self._members = list(range(rank // size * size, rank // size * size + size))
        self._position = rank % size
        if size > 1:
            groups = [distributed.new_group(range(start, start + size)) for start in range(0, world, size)]
            self._group = groups[rank // size]
        self._name = self._gather(secrets.token_hex(8))[0] if size > 1 else None

    def generate(self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int) -> list[Completion]:
        """One completion per prompt, in order. Every process of a tensor-parallel group must call it.

        Raises:
            RolloutFailed: the engine cannot continue, or a prompt leaves no room for the completion.
        """
        everyone = self._gather((prompts, seeds))
        all_prompts = [prompt for theirs, _ in everyone for prompt in theirs]
        all_seeds = [seed for _, theirs in everyone for seed in theirs]
        before = sum(len(theirs) for theirs, _ in everyone[: self._position])
        with self._settings(), _as_rollout_failed("vLLM could not sample"):
            self._wake("kv_cache")
            completions = self._generate_all(all_prompts, all_seeds, max_new_tokens)
            self._sleep()
        return completions[before : before + len(prompts)]

    def _generate_all(self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int) -> list[Completion]:
        if "weights" in self._asleep:
            raise RuntimeError("it sleeps and has no weights; sync comes first")
        longest = max(map(len, prompts), default=0)
        if longest + max_new_tokens > self._max_model_len:
            raise ValueError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed vllm_max_model_len: "
                f"{self._max_model_len}"
            )
        if not prompts:
            return []
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        parameters = [
            self._vllm.SamplingParams(
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                top_k=self.sampling.top_k,
                seed=seeds[i],
                max_tokens=max_new_tokens,
                stop_token_ids=self._eos_token_ids,
                logit_bias=self._bias,
                logprobs=0,
                detokenize=False,
            )
            for i in order
        ]
        # None rather than a disabled one, by whose elapsed time, 0, vLLM would divide.
        bar = partial(screen.bar, leave=False) if self._progress and screen.has_bars else False
        outputs = self._llm.generate([{"prompt_token_ids": prompts[i]} for i in order], parameters, use_tqdm=bar)
        completions: list[Any] = [None] * len(prompts)
        for i, output in zip(order, outputs):
            completions[i] = _completion(output.outputs[0])
        return completions

    def sync(self, named_weights: Iterable[tuple[str, Tensor]]) -> None:
        """Stream the student's weights in. Collective: gathering them is.

        Raises:
            RolloutFailed: they do not fit the engine's model.
        """
        with self._settings(), _as_rollout_failed("vLLM could not take the weights over"):
            self._wake("weights")
            weights = (pair for pair in self._as_saved(named_weights) if self._has_head or pair[0] != "lm_head.weight")
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self._llm.reset_prefix_cache()
        self.stale = False

    def _sleep(self) -> None:
        """Give the device's memory back; the weights come again with the next `sync`."""
        if self._on_gpu:
            self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}
            self.stale = True

    def _wake(self, tag: str) -> None:
        if tag in self._asleep:
            torch.cuda.empty_cache()  # what training has freed and PyTorch holds
            self._llm.wake_up(tags=[tag])
            self._asleep.remove(tag)

    def _gather(self, mine: _Request) -> list[_Request]:
        """What each member of the tensor-parallel group has: an engine's processes must see the same requests."""
        if len(self._members) == 1:
            return [mine]
        everyone: list[Any] = [None] * len(self._members)
        distributed.all_gather_object(everyone, mine, group=self._group)
        return everyone


def _has_no_weights(model: str) -> bool:
    """Of a folder: an architecture alone."""
    return Path(model).is_dir() and not any([*Path(model).glob("*.safetensors"), *Path(model).glob("*.bin")])


def _has_head(model: nn.Module) -> bool:
    """Whether the engine's model wants a tied head beside the embeddings (Qwen3), or has no name for it (Gemma 2)."""
    return any(name.endswith("lm_head") for name, _ in model.named_modules(remove_duplicate=False))


def _completion(output: Any) -> Completion:
    token_ids = list(output.token_ids)
    logprobs = [position[token].logprob for position, token in zip(output.logprobs, token_ids)]
    return Completion(token_ids, logprobs, finished=output.finish_reason == "stop")


def _never(token_ids: range) -> dict[int, float] | None:
    """The logit bias that keeps tokens from being drawn.

    Not `allowed_token_ids`, the other way round: of those a GPU's engine takes no more than it does biases.

    Raises:
        RecipeError: more tokens than an engine takes.
    """
    if len(token_ids) > _MAX_BIASES:
        raise RecipeError(
            f"rollout_backend: vllm cannot keep {len(token_ids)} tokens of the student's head from being drawn that "
            f"the teacher does not score ({_MAX_BIASES} at most); use rollout_backend: transformers"
        )
    return dict.fromkeys(token_ids, float("-inf")) or None


def _check_installed() -> None:
    """Refuse to start without it.

    Raises:
        RecipeError: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise RecipeError(
            "rollout_backend: vllm is not installed here; `make vllm` brings it where there is a build, or use "
            "rollout_backend: transformers"
        )


@contextmanager
def _single_process_variables() -> Iterator[None]:
    """What `external_launcher` reads of a launcher, for a process that was started without one."""
    missing = {
        name: value
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items()
        if name not in os.environ
    }
    os.environ.update(missing)
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


@contextmanager
def _as_recipe_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # vLLM raises what it likes; each becomes one line
        raise RecipeError(f"rollout_backend: vllm does not start with these settings: {_named(error)}") from error


@contextmanager
def _as_rollout_failed(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RolloutFailed(f"{what}: {_named(error)}") from error


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 400)}"
