"""Start the training script as a user does, on several processes that talk over gloo, and read what it leaves."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "scripts" / "run_vopd.py"

# What every layout must agree on, step by step.
COMPARED = (
    "loss", "grad_norm", "reverse_kl", "reward/mean", "completion/length", "eval_reverse_kl", "eval_reverse_kl_stderr",
    "eval_accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder and what it printed."""

    folder: Path
    output: str

    @property
    def history(self) -> list[dict[str, float]]:
        return json.loads((self.folder / "trainer_state.json").read_text())["log_history"]

    @property
    def environment(self) -> dict[str, object]:
        return json.loads((self.folder / "environment.json").read_text())

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(next(self.folder.glob("*model.safetensors")))


def environment() -> dict[str, str]:
    """The test's own, with ninja on the path and DeepSpeed's compiled extension kept beside the checkout."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TORCH_EXTENSIONS_DIR": str(REPOSITORY / ".cache" / "torch_extensions")}


def execute(words: list[str], timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment(), cwd=REPOSITORY)


def launch(recipe: Path, output_dir: Path, processes: int = 1, **fields: object) -> Run:
    """The script on that many processes, to its end."""
    flags = [
        word for name, value in {"output_dir": output_dir, **fields}.items() for word in (f"--{name}", str(value))
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [sys.executable, *(torchrun if processes > 1 else []), str(SCRIPT), str(recipe), *flags]
    done = execute(words)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return Run(output_dir, done.stdout + done.stderr)


def on_two_processes(kind: str, recipe: Path, output: Path) -> dict[str, Any]:
    """What a function of tests/sharded_worker.py saw."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = REPOSITORY / "tests" / "sharded_worker.py"
    done = execute([*torchrun, str(worker), kind, str(recipe), str(output)], timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(output.read_text())


def assert_same_run(run: Run, reference: Run, tolerance: float) -> None:
    """The same log lines and the same final weights."""
    assert len(run.history) == len(reference.history)
    for line, expected in zip(run.history, reference.history):
        for name in COMPARED:
            assert (name in line) == (name in expected)
            if name in expected:
                difference = abs(line[name] - expected[name])
                assert difference <= tolerance * max(1, abs(expected[name])), (expected["step"], name, difference)
    assert_same_weights(run.weights, reference.weights, tolerance)


def assert_same_weights(
    weights: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], tolerance: float
) -> None:
    assert weights.keys() == reference.keys()
    for name, expected in reference.items():
        torch.testing.assert_close(weights[name], expected, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# Where vLLM has no build its tests are skipped; where it must be there (VOPD_REQUIRE_VLLM=1, as in CI) they fail.
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None and os.environ.get("VOPD_REQUIRE_VLLM") != "1",
    reason="vLLM is not installed; `make vllm` brings it where there is a build",
)
