"""A machine is checked by the trainer's own steps; each fault is a red line that says what to do, and status 1."""

import math
import os
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TinyPair
from launching import REPOSITORY, execute, needs_vllm
from packaging.requirements import Requirement
from torch.multiprocessing import ProcessExitedException
from transformers import AutoModelForCausalLM

from vopd_recipes.loss import Estimator, Head, fused_loss
from vopd_recipes.machine import command, main, surroundings, trial
from vopd_recipes.machine.forecast import largest_errors
from vopd_recipes.machine.report import Report
from vopd_recipes.machine.trial import Seen, compare
from vopd_recipes.rollout import Sampling, TransformersRollout, VLLMRollout
from vopd_recipes.training import trainer as training

SCRIPT = REPOSITORY / "scripts" / "check_machine.py"
EVERY = (
    "versions", "devices", "exchange", "models", "attention", "loss", "rollout", "hand-over", "steps", "memory",
    "room", "seconds", "forecast", "all right",
)  # fmt: skip


def check(path: Path, *words: str) -> int:
    """Its exit status."""
    try:
        main([str(path), *words])
    except SystemExit as ended:
        return int(ended.code)
    return 0


def lines(text: str) -> dict[str, tuple[str, str]]:
    """Name → (mark, text) of what was printed."""
    marked = [line for line in text.splitlines() if line[:1] in ("✓", "✗")]
    return {line[2:13].strip(): (line[0], line[14:]) for line in marked}


@pytest.mark.parametrize("words", [(), ("--random",)])
def test_a_machine_that_is_right(write_recipe, tiny_pair: TinyPair, tmp_path: Path, capsys, words) -> None:
    """The learning rate of the recipe is too small for a hand-over to show; the trial's own is not."""
    if words:  # the architectures alone
        for name in ("student", "teacher"):
            settings = AutoModelForCausalLM.from_pretrained(getattr(tiny_pair, name)).config
            settings.save_pretrained(tmp_path / name)
        recipe = write_recipe(
            model_name_or_path=str(tmp_path / "student"),
            teacher_model_name_or_path=str(tmp_path / "teacher"),
            dataset_name="nobody/has-it",
            learning_rate=1e-9,
        )
    else:
        recipe = write_recipe(learning_rate=1e-9, max_completion_length=40, warmup_steps=100)
    assert check(recipe, *words) == 0
    said = lines(capsys.readouterr().out)
    assert tuple(said) == EVERY and {mark for mark, _ in said.values()} == {"✓"}
    assert "flash_attention" in said["attention"][1]
    assert "too little to tell" not in said["hand-over"][1]
    assert not (tmp_path / "run").exists()


def test_memory_is_the_planners(write_recipe, capsys) -> None:
    """Counted tensor by tensor on the way of a real step: within 10 % of what was computed from configurations."""
    assert check(write_recipe(max_completion_length=300, max_prompt_length=64)) == 0
    words = lines(capsys.readouterr().out)["memory"][1].replace(",", "").split()
    took, planned = (float(words[place]) for place in (words.index("took") + 1, words.index("planned") + 1))
    assert "2 × 364 tokens" in " ".join(words)
    assert took == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize("words", [(), ("--random",)])
def test_the_long_row_is_all_teachers(write_recipe, tiny_pair: TinyPair, problem_folder, monkeypatch, words) -> None:
    """Each teaches some of its sequences, after prompts as long as a privileged teacher's may be."""
    windows = []

    class Watched(trial.Trial):
        def teacher_views(self, batches):
            windows.append(batches)
            return super().teacher_views(batches)

    monkeypatch.setattr(command, "Trial", Watched)
    names = ("first", "second")
    recipe = write_recipe(
        dataset_name=None, teacher_model_name_or_path=None, max_prompt_length=64, teacher_max_prompt_length=300,
        teachers={name: {"teacher_model_name_or_path": str(tiny_pair.teacher)} for name in names},
        dataset_mixture=[{"dataset_name": str(problem_folder), "teacher": name} for name in names],
        teacher_prompt_template="{prompt} {answer}",
    )  # fmt: skip
    assert check(recipe, *words) == 0
    row = windows[-1][0].samples
    assert [sample.teacher for sample in row] == list(names)
    assert [(len(sample.prompt_ids), len(sample.teacher_prompt_ids)) for sample in row] == [(64, 300)] * 2
    assert all(sum(sample.statistics["reverse_kl"]) > 0 for sample in row)


def test_memory_that_nobody_can_plan_is_no_fault(write_recipe, capsys) -> None:
    assert check(write_recipe(optim="adafactor")) == 0
    assert "optim: adafactor is not planned for" in lines(capsys.readouterr().out)["memory"][1]


def test_a_bad_recipe_is_no_fault_of_the_machine(write_recipe, capsys) -> None:
    assert check(write_recipe(), "--dtype", "half") == 2
    assert "--dtype: dtype must be one of" in capsys.readouterr().err
    served = write_recipe(teacher_backend="server", teacher_server_url="http://x", divergence="rao_blackwell")
    assert check(served, "--random") == 2
    assert "--random: the recipe's teacher is a server's" in capsys.readouterr().err


def test_a_dtype_that_rounds_updates_away(write_recipe, capsys) -> None:
    assert check(write_recipe(dtype="bfloat16")) == 1
    mark, text = lines(capsys.readouterr().out)["models"]
    assert mark == "✗" and "would round away; use dtype: float32" in text


def test_too_little_memory(write_recipe, capsys) -> None:
    """The recipe's own rows, not those that the trial could afford."""
    room = surroundings.cpu_bytes()
    assert check(write_recipe(max_completion_length=room // 10**4)) == 1
    mark, text = lines(capsys.readouterr().out)["room"]
    assert mark == "✗" and f"of {room / 1e9:.2f} GB" in text and "smallest change that fits: " in text


class Stubborn(TransformersRollout):
    """Samples with the weights of its first rollout for ever."""

    def generate(self, *args, **kwargs):
        if self._copied is None:
            self._copied = AutoModelForCausalLM.from_pretrained(self._model().config._name_or_path).eval()
            self._model = lambda: self._copied
        return super().generate(*args, **kwargs)

    _copied = None


@pytest.mark.parametrize("fault", ["rollout", "hand-over"])
def test_a_sampler_that_is_not_the_student(write_recipe, tiny_pair, monkeypatch, capsys, fault) -> None:
    """Another model from the start, or the student's weights of the beginning."""
    other = AutoModelForCausalLM.from_pretrained(tiny_pair.teacher).eval()

    def engine(args, student, accelerator, tokenizer, vocabulary, *rest):
        kind, model = (TransformersRollout, other) if fault == "rollout" else (Stubborn, student)
        return kind(lambda: model, {256}, vocabulary, Sampling(), 8)

    monkeypatch.setattr(training, "build_rollout", engine)
    assert check(write_recipe()) == 1
    said = lines(capsys.readouterr().out)
    assert [name for name, (mark, _) in said.items() if mark == "✗"] == (
        ["rollout", "hand-over"] if fault == "rollout" else ["hand-over"]
    )
    assert "compare rollout_backend: transformers" in said[fault][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", ["sampled", "rao_blackwell", "full"])
def test_the_loss_in_the_runs_type(dtype: torch.dtype, divergence: str) -> None:
    """Right within rounding; a head of another type than the run's is far outside of float32's bound."""
    generator = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(48, 32, generator=generator).to(dtype) for _ in range(2))
    head, teacher = (Head((0.4 * torch.randn(300, 32, generator=generator)).to(dtype)) for _ in range(2))
    targets, logprobs = torch.randint(300, (48,), generator=generator), torch.full((48,), -4.0)
    estimator = Estimator(divergence, "value" if divergence != "full" else "none")
    errors = largest_errors(Seen(loss_errors=compare(hidden, head, other, teacher, targets, estimator, logprobs)))
    assert errors < (1e-4 if dtype == torch.float32 else 0.02)


def test_a_loss_that_is_not_its_definition(write_recipe, monkeypatch, capsys) -> None:
    """A device that multiplies in a type with fewer digits than the run's."""

    def rounded(hidden, head, *args, **kwargs):
        return fused_loss(
            hidden.bfloat16().float(), replace(head, weight=head.weight.bfloat16().float()), *args, **kwargs
        )

    monkeypatch.setattr(trial, "fused_loss", rounded)
    assert check(write_recipe()) == 1
    mark, text = lines(capsys.readouterr().out)["loss"]
    assert mark == "✗" and "dtype: float32 tells whether rounding is to blame" in text


def test_memory_of_an_engine_that_sleeps_is_not_the_rows(monkeypatch) -> None:
    """PyTorch's allocator counts what vLLM gave back to the device as if it were there."""
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100)
    engine, seen = VLLMRollout.__new__(VLLMRollout), Seen()
    engine.counted_bytes = 60
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cuda")), rollout=engine, seen=seen)
    with trial.Trial._measured(trainer):
        pass
    assert seen.bytes == 40


def test_errors_that_are_no_number_are_the_largest() -> None:
    assert largest_errors(Seen(loss_errors=(float("nan"), 1e-6))) == math.inf
    assert largest_errors(Seen()) == math.inf


def test_packages_that_were_not_tried() -> None:
    wanted = [
        Requirement(f"torch=={version('torch')}"),
        Requirement("transformers<1"),
        Requirement("no-such-thing>=2"),
    ]
    assert surroundings.unmet(wanted) == [
        ("transformers", version("transformers"), "<1"),
        ("no-such-thing", "is not installed", ">=2"),
    ]


def test_a_gpu_that_torch_cannot_use(write_recipe, monkeypatch, tmp_path, capsys) -> None:
    """A driver that is there, for which this torch has nothing."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 550.54.15'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert check(write_recipe()) == 1
    mark, text = lines(capsys.readouterr().out)["devices"]
    assert mark == "✗" and "NVIDIA H100 80GB HBM3 is here, with driver 550.54.15" in text
    assert "make install" in text or "wants a newer driver" in text


def test_an_exchange_that_fails_is_a_fault(monkeypatch, capsys) -> None:
    def broken(backend: str) -> float:
        raise RuntimeError("unhandled system error,\nNCCL version 2.28")

    monkeypatch.setattr(surroundings, "_add_up", broken)
    monkeypatch.setattr(surroundings.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(surroundings.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(surroundings.distributed, "get_backend", lambda: "nccl")
    report = Report()
    assert not surroundings.check_exchange(report, on_gpu=True)
    assert report.faults == 1
    assert (
        "nccl between 2 processes: unhandled system error, NCCL version 2.28; try NCCL_P2P" in capsys.readouterr().out
    )


def test_an_exchange_that_kills_its_process_is_a_fault(monkeypatch, capsys) -> None:
    def killed(count: int, backend: str) -> float:
        raise ProcessExitedException("process 1 terminated with signal SIGSEGV", 1, 7, -11, "SIGSEGV")

    monkeypatch.setattr(surroundings, "between", killed)
    monkeypatch.setattr(surroundings.torch.cuda, "device_count", lambda: 2)
    report = Report()
    assert not surroundings.check_exchange(report, on_gpu=True) and report.faults == 1
    assert "nccl between 2 GPUs: process 1 terminated with signal SIGSEGV; try NCCL_P2P" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_started_for_it_exchange() -> None:
    """Slow: two processes, as a single one starts them where there are several GPUs."""
    assert surroundings.between(2, "gloo") > 0


def test_only_the_first_process_says_what_is_right(capsys) -> None:
    other = Report(rank=1)
    other.right("loss", "fine")
    other.judge("loss", False, "wrong", "do something")  # all know it; the first says so
    assert capsys.readouterr().out == "" and other.faults == 1
    other.fault("memory", "out of it", "smaller rows")
    assert capsys.readouterr().out == "✗ memory      rank 1: out of it; smaller rows\n"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes(write_recipe, launcher: str) -> None:
    """Slow: the launchers themselves."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if launcher == "accelerate":
        start = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
    done = execute([*start, str(SCRIPT), str(write_recipe())])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = lines(done.stdout)
    assert tuple(said) == EVERY and done.stdout.count("✓") == len(EVERY)
    assert said["exchange"][1].startswith("gloo between 2 processes: ")


@pytest.mark.slow
@needs_vllm
def test_vllm_without_weights(write_recipe) -> None:
    """Slow: an engine. Its first weights come by hand-over, and it keeps up with a step."""
    done = execute([sys.executable, str(SCRIPT), str(write_recipe(rollout_backend="vllm")), "--random"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = lines(done.stdout)
    assert tuple(said) == EVERY
    assert "rollout_backend: vllm" in said["models"][1]
    assert "Traceback" not in done.stderr
