"""What a step did: sums over tokens and completions between two log lines, over all processes.

Means are ratios of global sums, so they do not depend on how tokens were split over devices and micro-batches. The
sums stay on the device until a line is logged.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from vopd_recipes.loss import TokenStats, importance_weight
from vopd_recipes.packing import MicroBatch, Sample


class StepMetrics:
    """Accumulates, then reduces over processes and forgets.

    Args:
        accelerator: reduces over processes.
        importance_sampling_cap: of the estimator, for `importance/mean` and `importance/max`.
        teachers: names of several.
    """

    def __init__(self, accelerator: Accelerator, importance_sampling_cap: float, teachers: Sequence[str] = ()) -> None:
        self._accelerator = accelerator
        self._teachers = teachers
        self._cap = importance_sampling_cap
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._largest_importance: Tensor | float = 0.0

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """What is counted and timed inside belongs to no step."""
        own = self._sums, self._largest_importance
        self.clear()
        yield
        self._sums, self._largest_importance = own

    def add_tokens(self, stats: TokenStats, batch: MicroBatch) -> None:
        """One micro-batch's [N] statistics."""
        rollout_logprobs = batch.rollout_logprobs
        importance = importance_weight(stats.student_logprob, rollout_logprobs, self._cap)
        sums = {
            "tokens": torch.ones_like(stats.reward),
            "reverse_kl": stats.reverse_kl,
            "reward": stats.reward,
            "reward_squared": stats.reward.square(),
            "advantage": stats.advantage,
            "advantage_squared": stats.advantage.square(),
            "baseline": stats.baseline,
            "entropy": stats.entropy,
            "importance": importance,
            "logprob_gap": (stats.student_logprob - rollout_logprobs).abs(),
        }
        if stats.support_mass_student is not None and stats.support_mass_teacher is not None:
            sums["support/mass_student"] = stats.support_mass_student
            sums["support/mass_teacher"] = stats.support_mass_teacher
        for name, variance in (stats.gradient_variances or {}).items():
            sums[f"gradient_variance/{name}"] = variance
        for teacher in self._teachers:  # on every process, whether it has tokens of this one or none
            own = batch.tokens_of(teacher)
            for name in ("tokens", "reverse_kl", "reward"):
                sums[f"{name}/{teacher}"] = sums[name][own]
        for name, values in sums.items():
            self._sums[name] = self._sums[name] + values.double().sum()
        if len(importance):
            self._largest_importance = torch.as_tensor(self._largest_importance, device=importance.device).maximum(
                importance.max()
            )

    def add_completions(self, samples: list[Sample]) -> None:
        """One rollout's completions."""
        self._sums["completions"] += len(samples)
        self._sums["completion_length"] += sum(len(sample.completion_ids) for sample in samples)
        self._sums["truncated"] += sum(not sample.finished for sample in samples)
        for teacher in self._teachers:
            lengths = [len(sample.completion_ids) for sample in samples if sample.teacher == teacher]
            self._sums[f"completions/{teacher}"] += len(lengths)
            self._sums[f"completion_length/{teacher}"] += sum(lengths)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to `time/<name>`, this process's; waits for the device."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._sums[f"time/{name}"] += time.perf_counter() - start

    def add_seconds(self, name: str, since: float) -> None:
        """Add the seconds since a `time.perf_counter()` to `time/<name>`, and count one step."""
        self._wait()
        self._sums[f"time/{name}"] += time.perf_counter() - since
        self._sums["steps"] += 1

    def _wait(self) -> None:
        if self._accelerator.device.type == "cuda":
            torch.cuda.synchronize(self._accelerator.device)

    def reduce(self) -> dict[str, float]:
        """The log line of the steps since the last one, over all processes; then start again. Collective."""
        device = self._accelerator.device
        names = sorted(self._sums)
        local = torch.stack([torch.as_tensor(self._sums[name], dtype=torch.float64).cpu() for name in names])
        largest = torch.as_tensor(self._largest_importance, dtype=torch.float64, device=device).reshape(1)
        local = local.to(device)
        totals = dict(zip(names, self._accelerator.reduce(local, "sum").tolist()))
        largest_anywhere = self._accelerator.gather(largest).max().item()
        self.clear()
        line = _log_line(totals, largest_anywhere, self._accelerator.num_processes)
        return line | _by_teacher(totals, self._teachers)


# Seconds per step: `teacher_window` is what a teacher says before the first micro-batch, `update` every micro-batch's
# forward and backward, with the `teacher`'s forward and DeepSpeed's `engine_step` inside, `train` all of it up to the
# end of the optimiser's step.
_TIMES = ("rollout", "sync", "teacher_window", "teacher", "update", "engine_step", "train")


def _log_line(totals: dict[str, float], largest_importance: float, processes: int) -> dict[str, float]:
    tokens = max(totals["tokens"], 1.0)
    completions = max(totals["completions"], 1.0)
    mean = {name: total / tokens for name, total in totals.items()}
    line = {
        "reverse_kl": mean["reverse_kl"],
        "reward/mean": mean["reward"],
        "reward/std": _deviation(mean, "reward"),
        "advantage/mean": mean["advantage"],
        "advantage/std": _deviation(mean, "advantage"),
        "baseline/mean": mean["baseline"],
        "entropy": mean["entropy"],
        "importance/mean": mean["importance"],
        "importance/max": largest_importance,
        "rollout/logprob_gap": mean["logprob_gap"],
        "completion/length": totals["completion_length"] / completions,
        "completion/truncated": totals["truncated"] / completions,
    }
    line |= {name: value for name, value in mean.items() if name.startswith("support/")}
    line |= _variances(mean)
    steps = totals["steps"] / processes
    seconds = {name: totals.get(f"time/{name}", 0.0) / processes / steps for name in _TIMES}
    line["time/rollout"], line["time/sync"] = seconds["rollout"], seconds["sync"]
    line["time/train"], line["time/teacher"] = seconds["train"], seconds["teacher_window"] + seconds["teacher"]
    student = seconds["update"] - seconds["teacher"] - seconds["engine_step"]
    line["time/student"] = student
    line["time/optimizer"] = seconds["train"] - line["time/teacher"] - student
    step_seconds = seconds["rollout"] + seconds["sync"] + seconds["train"]
    line["tokens_per_second"] = totals["tokens"] / steps / max(step_seconds, 1e-9)
    return line


def _by_teacher(totals: dict[str, float], teachers: Sequence[str]) -> dict[str, float]:
    """Means over each teacher's own tokens and completions; of one that had none, nothing."""
    line = {}
    for teacher in teachers:
        if tokens := totals[f"tokens/{teacher}"]:
            line[f"reverse_kl/{teacher}"] = totals[f"reverse_kl/{teacher}"] / tokens
            line[f"reward/mean/{teacher}"] = totals[f"reward/{teacher}"] / tokens
        if completions := totals[f"completions/{teacher}"]:
            line[f"completion/length/{teacher}"] = totals[f"completion_length/{teacher}"] / completions
    return line


def _variances(mean: dict[str, float]) -> dict[str, float]:
    """The mean over tokens of each estimator's variance, and its ratio to OPD's where that is not zero."""
    variances = {name: value for name, value in mean.items() if name.startswith("gradient_variance/")}
    opd = variances.get("gradient_variance/none", 0.0)
    if opd == 0:
        return variances
    ratios = {name.replace("variance", "variance_ratio", 1): value / opd for name, value in variances.items()}
    return variances | ratios


def _deviation(mean: dict[str, float], name: str) -> float:
    variance = mean[f"{name}_squared"] - mean[name] ** 2
    return max(variance, 0.0) ** 0.5
