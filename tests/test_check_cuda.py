"""A GPU that torch cannot use is found when the environment is made, by a driver that is only told of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "check_cuda.py"
SMI = """#!/bin/sh
echo "| NVIDIA-SMI {version}      Driver Version: {version}     CUDA Version: {cuda}     |"
exit {status}
"""
# A build for CUDA, which this machine need not have: what torch says of itself, and what it cannot do.
FOR_CUDA = "import runpy, sys, torch; torch.version.cuda = '13.0'; runpy.run_path(sys.argv[1], run_name='__main__')"
no_gpu_here = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU here can be used")


def check(folder: Path, version: str, cuda: str, status: int = 0, code: str | None = None) -> tuple[int, str]:
    """Exit status and error of the script beside an nvidia-smi that says this."""
    smi = folder / "nvidia-smi"
    smi.write_text(SMI.format(version=version, cuda=cuda, status=status))
    smi.chmod(0o755)
    words = [sys.executable, *(["-c", code] if code else []), str(SCRIPT)]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    return done.returncode, done.stderr


@no_gpu_here
def test_a_driver_that_is_too_old(tmp_path: Path) -> None:
    status, error = check(tmp_path, "550.54.15", "12.4", code=FOR_CUDA)
    assert (status, error.count("\n")) == (1, 1)
    assert error.startswith("error: CUDA cannot be used: torch 2.13")
    assert "driver 550.54.15 supports CUDA 12.4: update the driver to one for CUDA 13.0 or newer" in error


@no_gpu_here
def test_a_driver_that_is_new_enough_and_a_gpu_that_fails(tmp_path: Path) -> None:
    status, error = check(tmp_path, "580.65.06", "13.0", code=FOR_CUDA)
    assert (status, error.count("\n")) == (1, 1)
    assert "and yet a sum on the GPU fails: " in error


@no_gpu_here
def test_a_build_without_cuda_beside_a_gpu(tmp_path: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this build has CUDA")
    status, error = check(tmp_path, "580.65.06", "13.0")
    assert (status, error.count("\n")) == (1, 1)
    assert "is a build without CUDA beside a GPU" in error


def test_no_gpu_is_no_fault(tmp_path: Path) -> None:
    assert check(tmp_path, "580.65.06", "13.0", status=9) == (0, "")


def test_the_installation_ends_with_it() -> None:
    """Before the stamp: what failed is tried again."""
    target = (ROOT / "Makefile").read_text().split("$(STAMP): setup.cfg")[1].split("\n\n")[0]
    assert target.index("scripts/check_cuda.py") < target.index("@touch $(STAMP)")
