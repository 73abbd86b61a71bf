"""Which values of a run's fields contradict each other or cannot be carried out, each said in one line.

Every check takes the `config.VOPDConfig` that is being made and raises a `ValueError` that begins with the field; who
builds the recipe adds the file and line. `transformers` raises many of these, too, but at the first evaluation, when
the schedule is made or when a tracker starts: after the models are loaded, or after hours.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType

from vopd_recipes.loss import METHODS, Estimator
from vopd_recipes.recipe.errors import one_line
from vopd_recipes.recipe.hub_ids import is_hub_id
from vopd_recipes.recipe.text import nearest

# Fields of TrainingArguments that would be ignored here or would silently change what is trained.
_UNSUPPORTED = {
    "hub_token": "a recipe is published with the run; log in with `hf auth login` or set HF_TOKEN",
    "hub_strategy": "every save is uploaded to a branch of its own, in the background",
    "hub_always_push": "every save is queued, however long the upload before it takes",
    "hub_revision": "the final model goes to main, and step N to the branch step-0000000N",
    "label_smoothing_factor": "there are no labels to smooth",
    "neftune_noise_alpha": "noise in the student's embeddings makes its samples off-policy",
    "auto_find_batch_size": "a micro-batch is packed by tokens; lower per_device_train_batch_size instead",
    "load_best_model_at_end": "every checkpoint is kept by step; pick one with the evaluation results",
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
        "a compiled student would not see the loss in place of its head; loss_compile compiles the loss",
    ),
    "ignore_data_skip": "a resumed run repeats the undisturbed one",
    "fp16": "the loss forms its gradient before a loss scale could save it from underflow; use bf16: true",
}


_COUNTS = (
    "max_completion_length", "num_generations", "num_generations_eval", "rollout_batch_size",
    "gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "eval_steps",
    "save_total_limit", "vllm_tensor_parallel_size", "vllm_max_model_len",
)  # fmt: skip
_TRACKERS = (*INTEGRATION_TO_CALLBACK, "none", "all")
# The modules of a tracker that are not its name; Kubeflow's asks for a variable of its pods.
_MODULES = {"azure_ml": ("azureml",), "dagshub": ("dagshub", "mlflow"), "flyte": ("flytekit",), "kubeflow": ()}
_OF_EVALUATION = ("reverse_kl", "accuracy", "completion_length", "truncated", "runtime")
# Schedules that follow a loss, of evaluations or of steps.
_FOLLOWING = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def check_values(args: Any) -> None:
    """Each value by itself."""
    require(bool(args.output_dir), "output_dir: missing; name a folder for the run")
    defaults = {item.name: item.default for item in fields(TrainingArguments)}
    for name, reason in _UNSUPPORTED.items():
        require(getattr(args, name) == defaults[name], f"{name} is not supported: {reason}")
    for name in _COUNTS:
        value = getattr(args, name)
        require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
    require(0 <= args.seed < 2**32, f"seed must lie in [0, 2^32), got {args.seed}")
    require(0 <= args.learning_rate < math.inf, f"learning_rate must be finite, at least 0, got {args.learning_rate}")
    _check_amounts(args)
    require(
        args.lr_scheduler_type not in _FOLLOWING,
        f"lr_scheduler_type: {args.lr_scheduler_type} follows a loss, and a distillation's says nothing of progress; "
        "use cosine, linear or constant_with_warmup",
    )
    require(not args.remove_unused_columns, "remove_unused_columns: true drops columns that rollouts need")
    require(
        args.train_sampling_strategy in ("random", "sequential"),
        f"train_sampling_strategy: {args.train_sampling_strategy} needs lengths that completions do not have yet; "
        "use random or sequential",
    )
    require(0 < args.temperature < math.inf, f"temperature must be positive and finite, got {args.temperature}")
    require(0 < args.top_p <= 1, f"top_p must lie in (0, 1], got {args.top_p}")
    require(args.top_k >= 0, f"top_k must not be negative, got {args.top_k}; 0 is off")


def _check_amounts(args: Any) -> None:
    """A run has steps, and logs and saves some of them; written so that nan, which compares with nothing, fails."""
    require(
        args.max_steps > 0 or 0 < args.num_train_epochs < math.inf,
        f"num_train_epochs must be positive and finite, got {args.num_train_epochs}, unless max_steps says how many",
    )
    for name in ("logging", "save"):
        steps, strategy = getattr(args, f"{name}_steps"), getattr(args, f"{name}_strategy")
        require(
            getattr(strategy, "value", strategy) != "steps" or 0 < steps < math.inf,
            f"{name}_steps must be positive and finite, got {steps}",
        )
    require(args.eval_steps is None or args.eval_steps < math.inf, f"eval_steps must be finite, got {args.eval_steps}")
    require(0 <= args.warmup_steps < math.inf, f"warmup_steps must be finite, at least 0, got {args.warmup_steps}")
    require(args.max_grad_norm >= 0, f"max_grad_norm must be at least 0, which is off, got {args.max_grad_norm}")
    workers = args.dataloader_num_workers
    require(workers >= 0, f"dataloader_num_workers must be at least 0, got {workers}")


def check_backends(args: Any, estimator: Estimator) -> None:
    """Where the teacher and the sampler run, and what that allows."""
    share = args.vllm_gpu_memory_utilization
    require(0 < share < 1, f"vllm_gpu_memory_utilization must lie in (0, 1), got {share}")
    require(args.teacher_server_timeout > 0, "teacher_server_timeout must be positive")
    compiler = os.environ.get("CXX", "g++")
    require(
        not (args.full_determinism and args.rollout_backend == "transformers") or args.device.type == "cpu",
        "full_determinism: transformers' sampling sums in an order that a GPU does not fix; use rollout_backend: vllm "
        "or leave it out",
    )
    require(
        not args.loss_compile or shutil.which(compiler) is not None,
        f"loss_compile: true needs a C++ compiler, and {compiler} is not on the PATH; install one, or leave it out",
    )
    if (backend := args.teacher_backend) != "server":
        require(args.teacher_server_url is None, f"teacher_server_url has no effect with teacher_backend: {backend}")
        require(
            args.teacher_server_scores == "logprobs",
            f"teacher_server_scores has no effect with teacher_backend: {backend}",
        )
        return
    require(bool(args.teacher_server_url), "teacher_server_url: missing; teacher_backend: server needs it")
    _check_url(args.teacher_server_url)
    require(not args.teacher_offload, "teacher_offload has no effect with teacher_backend: server")
    require(
        args.teacher_server_timeout < args.ddp_timeout,
        f"teacher_server_timeout: {args.teacher_server_timeout:g} is not below ddp_timeout: {args.ddp_timeout}, "
        "after which processes that wait for one another are killed; raise ddp_timeout",
    )
    if not args.knows_logprobs_only:
        return
    require(not args.loss_compile, "loss_compile has no effect with teacher_server_scores: logprobs")
    require(
        not args.log_gradient_variance,
        "log_gradient_variance: true needs the teacher's whole distribution, which a server of log-probabilities "
        "lacks; set teacher_server_scores: hidden_states",
    )
    require(
        estimator.method.needs != "distribution",
        f"divergence: {args.divergence}, baseline: {estimator.baseline} need the teacher's whole "
        f"distribution, which a server of log-probabilities lacks; use {_served()}; or set "
        "teacher_server_scores: hidden_states",
    )


def _check_url(url: str) -> None:
    """An address that a client can be made of; what may be a password in it is not repeated."""
    wanted = "teacher_server_url: name it as http://host:port"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{wanted}; {one_line(error)}") from error
    require(parts.scheme in ("http", "https"), f"{wanted}; it begins with neither http:// nor https://")
    require(bool(parts.hostname), f"{wanted}; it has no host")
    require(port != 0, f"{wanted}; 0 is no port")


def check_publishing(args: Any) -> None:
    """Where a published run goes."""
    require(not args.hub_merge or args.push_to_hub, "hub_merge has no effect with push_to_hub: false")
    if not args.push_to_hub:
        return
    require(bool(args.hub_model_id), "hub_model_id: missing; push_to_hub needs it: the repository, org/name")
    require(
        is_hub_id(args.hub_model_id), f"hub_model_id: '{args.hub_model_id}' is no repository; name one as org/name"
    )


def check_sampling(args: Any) -> None:
    """The samples are the student's own, or the recipe says otherwise."""
    for name, neutral in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0)):
        value = getattr(args, name)
        require(
            value == neutral or args.allow_biased_sampling,
            f"{name}: {value} samples from another distribution than the student's, which biases the gradient; "
            f"use {name}: {neutral:g} or set allow_biased_sampling: true",
        )


def check_trackers(args: Any) -> None:
    """Who is to hear of the run can be reached from this installation."""
    names = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    for name in names:
        require(name in _TRACKERS, f"report_to: '{name}' is no tracker{nearest(name, _TRACKERS)}")
        if name in ("none", "all"):
            continue
        absent = [module for module in _MODULES.get(name, (name,)) if importlib.util.find_spec(module) is None]
        require(
            not absent,
            f"report_to: {name} is not installed; pip install {' '.join(absent)}, or report_to: none",
        )


def check_best_metric(args: Any) -> None:
    """What the best checkpoint is picked by is measured; of accuracy more is better, of all the others less."""
    metric = args.metric_for_best_model
    require(
        metric is not None or str(getattr(args.save_strategy, "value", args.save_strategy)) != "best",
        f"save_strategy: best needs metric_for_best_model: one of {', '.join(_OF_EVALUATION)}",
    )
    if metric is None:
        return
    name = metric.removeprefix("eval_")
    require(
        name in _OF_EVALUATION,
        f"metric_for_best_model: an evaluation has no '{metric}'; it has {', '.join(_OF_EVALUATION)}",
    )
    if args.greater_is_better is None:
        args.greater_is_better = name == "accuracy"


def check_schedule(args: Any) -> None:
    """The learning-rate schedule can be made: made once, for a weight that nobody trains."""
    kind = SchedulerType(args.lr_scheduler_type)
    given = args.lr_scheduler_kwargs or {}
    try:
        get_scheduler(kind, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), 1, 10, dict(given))
    except Exception as error:  # each schedule says in its own way what it lacks
        raise ValueError(
            f"lr_scheduler_type: {kind.value} cannot be made with lr_scheduler_kwargs: {given}: {one_line(error)}"
        ) from error


def _served() -> str:
    """The recipe's words of every method for which a server's log-probabilities are enough."""
    words: dict[str, list[str]] = {}
    for row in METHODS.values():
        if row.needs != "distribution":
            words.setdefault(row.divergence, []).append(row.baseline)
    return ", or ".join(
        f"divergence: {name} and baseline: {', '.join(some)} or {last}" for name, (*some, last) in words.items()
    )


def require(condition: bool, message: str) -> None:
    """Else a `ValueError` that says so."""
    if not condition:
        raise ValueError(message)
