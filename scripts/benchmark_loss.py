"""Time and peak memory of `fused_loss`, forward and backward, against two other ways to a distillation gradient.

dense   what one would write first: the logits of both models, log_softmax, a loss and its statistics under autograd.
        Not `reference_loss`: that computes the variance of every estimator besides, and would flatter us.
TRL     the chunked kernel of its DistillationTrainer, which recomputes the logits in the backward pass. It knows
        `full` only, so every ratio to TRL is a ratio to that. Without trl its columns stay empty.

All contenders run in one process, once to warm up and then round by round in alternating order, so that a slow minute
of the machine hits them alike: times are medians over the rounds, ratios are medians of the ratios within a round.
A loss or a gradient that is not the dense one stops the run: the time of a wrong answer is no time at all.
Peaks are counted over the inputs; on a CPU each is taken in a fresh process, because an allocator remembers.

    python scripts/benchmark_loss.py
    python scripts/benchmark_loss.py --tables chunks --tokens 1536
    python scripts/benchmark_loss.py --compiled          # besides, some of ours as `loss_compile: true` runs them
    python scripts/benchmark_loss.py --device cuda --tokens 8192 --hidden 4096 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

from vopd_recipes.files import check_writable
from vopd_recipes.loss import METHODS, Estimator, Head, fused_loss
from vopd_recipes.recipe import RecipeError, one_line_errors

TABLES = ("time", "memory", "growth", "chunks", "variances")
CHUNK_SIZES = (64, 128, 192, 256, 384, 512)
HEADS = ("frozen", "trained")
ESTIMATORS = {row.key: Estimator(row.divergence, row.baseline) for row in METHODS.values()}
ESTIMATORS["value, variances"] = Estimator()
COMPILED = ("value", "full", "rao_blackwell_optimal")
# Whose loss and gradient must be the dense one's.
SAME = {"value": "dense sampled", "full": "dense full", "topk": "dense topk", "TRL full": "dense full"}
SAME |= {f"{name}, compiled": name for name in COMPILED}


@dataclass(frozen=True)
class Inputs:
    student_hidden: Tensor  # [N, H], with gradient
    student_weight: Tensor  # [V, H], with gradient where the head is trained
    teacher_hidden: Tensor  # [N, H]
    teacher_weight: Tensor  # [V, H]
    targets: Tensor  # [N]

    @staticmethod
    def make(options: argparse.Namespace, tokens: int) -> Inputs:
        torch.manual_seed(0)
        kind = {"device": options.device, "dtype": getattr(torch, options.dtype)}
        hidden = torch.randn(tokens, options.hidden, **kind)
        student_weight = torch.randn(options.vocab, options.hidden, **kind).mul_(options.hidden**-0.5)
        teacher_weight = torch.randn(options.vocab, options.hidden, **kind).mul_(0.4 * options.hidden**-0.5)
        teacher_weight += student_weight
        targets = torch.randint(options.vocab, (tokens,), device=options.device)
        return Inputs(hidden.clone().requires_grad_(), student_weight, hidden, teacher_weight, targets)

    def first(self, tokens: int) -> Inputs:
        """The first `tokens` tokens under the same heads."""
        return replace(
            self,
            student_hidden=self.student_hidden.detach()[:tokens].clone().requires_grad_(),
            teacher_hidden=self.teacher_hidden[:tokens],
            targets=self.targets[:tokens],
        )

    def reset(self, head: str) -> None:
        """Drop the gradients; freeze or unfreeze the head."""
        self.student_hidden.grad = self.student_weight.grad = None
        self.student_weight.requires_grad_(head == "trained")


Loss = Callable[[Inputs], Tensor]


def log_probabilities(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.t()).float().log_softmax(-1)


def dense_sampled(inputs: Inputs) -> Tensor:
    """The sampled-token loss with its value baseline, from the logits of all tokens at once."""
    logp = log_probabilities(inputs.student_hidden, inputs.student_weight)
    with torch.no_grad():
        teacher_logp = log_probabilities(inputs.teacher_hidden, inputs.teacher_weight)
        p = logp.exp()
        reverse_kl, _entropy = (p * (logp - teacher_logp)).sum(-1), -(p * logp).sum(-1)
    target_logp, teacher = (values.gather(1, inputs.targets[:, None])[:, 0] for values in (logp, teacher_logp))
    advantage = (teacher - target_logp + reverse_kl).detach()
    return -(advantage * target_logp).mean()


def dense_full(inputs: Inputs) -> Tensor:
    """The reverse KL itself."""
    logp = log_probabilities(inputs.student_hidden, inputs.student_weight)
    p = logp.exp()
    with torch.no_grad():
        teacher_logp = log_probabilities(inputs.teacher_hidden, inputs.teacher_weight)
        _entropy = -(p * logp).sum(-1)
    return (p * (logp - teacher_logp)).sum(-1).mean()


def dense_topk(inputs: Inputs) -> Tensor:
    """The reverse KL renormalised on the student's 20 most likely tokens."""
    logp = log_probabilities(inputs.student_hidden, inputs.student_weight)
    with torch.no_grad():
        teacher_logp = log_probabilities(inputs.teacher_hidden, inputs.teacher_weight)
        p = logp.exp()
        _reverse_kl, _entropy = (p * (logp - teacher_logp)).sum(-1), -(p * logp).sum(-1)
        support = logp.topk(20, dim=-1).indices
    student, teacher = (values.gather(1, support).log_softmax(-1) for values in (logp, teacher_logp))
    return (student.exp() * (student - teacher)).sum(-1).mean()


def trl_full(inputs: Inputs) -> Tensor:
    """The reverse KL as TRL's trainer asks its kernel for it: no bias, beta 1, temperature 1."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence, _entropy = ChunkedDivergenceFunction.apply(
        inputs.student_hidden, inputs.student_weight, None,
        inputs.teacher_hidden, inputs.teacher_weight, None, 1.0, 1.0,
    )  # fmt: skip
    return divergence.mean()


def fused(name: str, chunk_size: int | None) -> Loss:
    """One of our estimators as a function of the inputs alone."""
    estimator = ESTIMATORS[name.removesuffix(", compiled")]
    options = {"chunk_size": chunk_size, "gradient_variance": "variances" in name, "compiled": "compiled" in name}
    return lambda inputs: fused_loss(
        inputs.student_hidden, Head(inputs.student_weight), inputs.teacher_hidden, Head(inputs.teacher_weight),
        inputs.targets, estimator, **options,
    )[0]  # fmt: skip


def contenders(chunk_size: int | None, compiled: bool = False) -> dict[str, Loss]:
    found = {"dense sampled": dense_sampled, "dense full": dense_full, "dense topk": dense_topk}
    if importlib.util.find_spec("trl"):
        found["TRL full"] = trl_full
    ours = [*ESTIMATORS, *(f"{name}, compiled" for name in COMPILED if compiled)]
    return found | {name: fused(name, chunk_size) for name in ours}


def dense_of(name: str) -> str:
    """The dense contender of the same kind: of a sampled gradient, of the top k's, of a whole divergence's."""
    if (own := name.removesuffix(", compiled")) not in ESTIMATORS:
        return "dense " + name.split()[-1]
    method = ESTIMATORS[own].method
    return "dense topk" if method.divergence == "topk" else "dense sampled" if method.samples else "dense full"


def seconds(loss: Loss, inputs: Inputs, head: str) -> float:
    """Time of one forward and backward pass; of one thread its CPU time, which other work does not lengthen."""
    inputs.reset(head)
    synchronise = torch.cuda.synchronize if inputs.targets.is_cuda else lambda: None
    clock = time.perf_counter if inputs.targets.is_cuda or torch.get_num_threads() > 1 else time.process_time
    synchronise()
    start = clock()
    loss(inputs).backward()
    synchronise()
    return clock() - start


def check(inputs: Inputs, losses: dict[str, Loss]) -> None:
    """Run everything once; stop where a loss or a gradient is not the dense one's."""
    tolerance = 1e-3 if inputs.student_weight.dtype == torch.float32 else 0.1  # dense rounds its logits to half
    results = {}
    for name, loss in losses.items():
        inputs.reset("frozen")
        value = loss(inputs)
        value.backward()
        results[name] = torch.cat([value.detach().view(1), inputs.student_hidden.grad.float().flatten()])
    for name in SAME.keys() & results.keys():
        expected = results[SAME[name]]
        if (error := (results[name] - expected).norm() / expected.norm()) > tolerance:
            raise SystemExit(f"{name} is not {SAME[name]}: relative error {error:.1e}")


def time_rounds(runs: dict, rounds: int, head: str) -> dict[object, list[float]]:
    """Seconds of every run {key: (loss, inputs)} in every round, warmed up, in alternating order."""
    times = {key: [] for key in runs}
    for turn in range(rounds + 1):
        order = list(runs) if turn % 2 else list(runs)[::-1]
        for key in order:
            times[key].append(seconds(*runs[key], head))
        say(f"{head} head: {f'round {turn} of {rounds}' if turn else 'warm-up'}")
    return {key: values[1:] for key, values in times.items()}


def ratio(times: list[float], others: list[float] | None) -> str:
    return f"{median(a / b for a, b in zip(times, others)):.2f}" if others else ""


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process in bytes."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def peak_here(options: argparse.Namespace, name: str, head: str, tokens: int) -> int:
    """Peak bytes over the inputs of one forward and backward pass in this process."""
    loss, inputs = contenders(options.chunk_size, compiled=True)[name], Inputs.make(options, tokens)
    seconds(loss, inputs.first(1), head)  # loads kernels and workspaces
    inputs.reset(head)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(inputs).backward()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far becomes the present
    before = resident("VmRSS")
    loss(inputs).backward()
    return resident("VmHWM") - before


def peak(options: argparse.Namespace, name: str, head: str, tokens: int, chunk_size: int | None = None) -> int:
    """`peak_here`, in a fresh process on a CPU."""
    chunk_size = chunk_size or options.chunk_size
    say(f"peak of {name}, {head} head, {tokens} tokens")
    if options.device == "cuda":
        return peak_here(argparse.Namespace(**vars(options) | {"chunk_size": chunk_size}), name, head, tokens)
    command = [sys.executable, __file__, "--peak", name, head, f"--tokens={tokens}", f"--threads={options.threads}"]
    command += [f"--dtype={options.dtype}", f"--hidden={options.hidden}", f"--vocab={options.vocab}"]
    command += [f"--chunk_size={chunk_size}"] if chunk_size else []
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def weight_gradient(options: argparse.Namespace, head: str) -> int:
    """Bytes of the one large result, the same for every contender: a trained head's gradient."""
    return (head == "trained") * options.vocab * options.hidden * getattr(torch, options.dtype).itemsize


def time_table(options: argparse.Namespace) -> list[list[str]]:
    losses, inputs = contenders(options.chunk_size, options.compiled), Inputs.make(options, options.tokens)
    check(inputs, losses)
    header = ["", *(f"{head}: {unit}" for head in HEADS for unit in ("ms", "ms/token", "× value", "× dense", "× TRL"))]
    rows = [[name] for name in losses]
    for head in HEADS:
        times = time_rounds({name: (loss, inputs) for name, loss in losses.items()}, options.rounds, head)
        for row, (name, values) in zip(rows, times.items()):
            ms = 1e3 * median(values)
            row += [f"{ms:.0f}", f"{ms / options.tokens:.2f}"]
            row += [ratio(values, times.get(other)) for other in ("value", dense_of(name), "TRL full")]
    return [header, *rows]


def variances_table(options: argparse.Namespace) -> list[list[str]]:
    """What `log_gradient_variance` adds to the loss, every round a pair: the ratio's median and its quartiles."""
    inputs = Inputs.make(options, options.tokens)
    runs = {name: (fused(name, options.chunk_size), inputs) for name in ("value", "value, variances")}
    rows = []
    for head in HEADS:
        without, with_variances = time_rounds(runs, options.rounds, head).values()
        ratios = [b / a for a, b in zip(without, with_variances)]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        times = [f"{1e3 * median(values):.0f}" for values in (without, with_variances)]
        rows.append([f"{head} head", *times, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"])
    return [["", "without: ms", "with: ms", "ratio", "quartiles"], *rows]


def memory_table(options: argparse.Namespace) -> list[list[str]]:
    """Peaks over the inputs and, where the head is trained, over its gradient, which is a result."""
    rows = {name: [name] for name in contenders(None, options.compiled)}
    for head in HEADS:
        peaks = {name: peak(options, name, head, options.tokens) - weight_gradient(options, head) for name in rows}
        for name, row in rows.items():
            row += [f"{peaks[name] / 2**20:.0f}", f"{peaks[name] / peaks[dense_of(name)]:.2f}"]
    return [["", *(f"{head}: {unit}" for head in HEADS for unit in ("MiB", "× dense"))], *rows.values()]


def growth_table(options: argparse.Namespace) -> list[list[str]]:
    """Time per token and peak of `value`, and the peaks of the others, as the tokens double and double again."""
    counts = [options.tokens * factor for factor in (1, 2, 4)]
    inputs = Inputs.make(options, counts[-1])
    runs = {count: (fused("value", options.chunk_size), inputs.first(count)) for count in counts}
    others = [name for name in ("value", "dense sampled", "TRL full") if name in contenders(None)]
    rows = {count: [str(count)] for count in counts}
    for head in HEADS:
        times = time_rounds(runs, options.rounds, head)
        for count, row in rows.items():
            row.append(f"{1e3 * median(times[count]) / count:.2f}")
    del inputs, runs
    for head in HEADS:
        for count, row in rows.items():
            peaks = [peak(options, name, head, count) - weight_gradient(options, head) for name in others]
            row += [*(f"{value / 2**20:.0f}" for value in peaks), f"{peaks[0] / peaks[1]:.2f}"]
    header = ["tokens", *(f"value, {head}: ms/token" for head in HEADS)]
    header += [f"{head}: {unit}" for head in HEADS for unit in (*(f"{name} MiB" for name in others), "× dense")]
    return [header, *rows.values()]


def chunks_table(options: argparse.Namespace) -> list[list[str]]:
    """Time per token and peak of `value` over chunk sizes."""
    inputs = Inputs.make(options, options.tokens)
    rows = {size: [str(size)] for size in CHUNK_SIZES}
    for head in HEADS:
        times = time_rounds({size: (fused("value", size), inputs) for size in rows}, options.rounds, head)
        for size, row in rows.items():
            row.append(f"{1e3 * median(times[size]) / options.tokens:.2f}")
    del inputs
    for head in HEADS:
        for size, row in rows.items():
            above = peak(options, "value", head, options.tokens, size) - weight_gradient(options, head)
            row.append(f"{above / 2**20:.0f}")
    header = [f"{head}: {unit}" for unit in ("ms/token", "MiB") for head in HEADS]
    return [["chunk size", *header], *rows.values()]


def markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        for row in (rows[0], rule, *rows[1:])
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)


def machine(options: argparse.Namespace) -> str:
    """Device, versions and sizes in a line."""
    name = platform.processor() or platform.machine()
    if options.device == "cuda":
        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").exists():
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    peer = f"trl {importlib.metadata.version('trl')}" if importlib.util.find_spec("trl") else "no trl"
    return (
        f"{name}, {options.threads} threads, torch {torch.__version__}, {peer}, {options.dtype}, "
        f"N {options.tokens}, H {options.hidden}, V {options.vocab:,}, {options.rounds} rounds"
    )


def say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens", type=int, default=512, help="N, completion tokens in a batch")
    parser.add_argument("--hidden", type=int, default=1024, help="H of both models (Qwen3-0.6B has 1024)")
    parser.add_argument("--vocab", type=int, default=151936, help="V (Qwen3 has 151,936)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk_size", type=int, help="tokens per chunk of ours; default: fused_loss chooses")
    parser.add_argument("--compiled", action="store_true", help="some of ours as loss_compile runs them too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES[:3])
    parser.add_argument("--output", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # how `peak` calls itself in a fresh process
    options = parser.parse_args()
    for name in ("tokens", "hidden", "vocab", "rounds", "chunk_size", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise RecipeError(f"--{name} must be at least 1, got {value}")
    if options.output:
        check_writable(options.output.parent, "--output")
    return options


@one_line_errors()
def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak_here(options, *options.peak, options.tokens))
        return
    if not importlib.util.find_spec("trl"):
        print("trl is not installed (pip install --no-deps trl==1.16.0): going on without it")
    report = [machine(options)]
    tables = {
        "time": time_table, "memory": memory_table, "growth": growth_table, "chunks": chunks_table,
        "variances": variances_table,
    }  # fmt: skip
    for name in options.tables:
        say(f"table: {name}")
        report += [f"**{name}**", markdown(tables[name](options))]
        print("\n\n".join(report[-2:]) + "\n", flush=True)
    print(report[0])
    if options.output:
        options.output.write_text("\n\n".join(report) + "\n")


if __name__ == "__main__":
    main()
