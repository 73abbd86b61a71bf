"""Whether torch can use the GPU that is here: `python scripts/check_cuda.py`, the last step of `make install`.

A driver that is older than the CUDA which torch was built for leaves `torch.cuda.is_available()` false, and everything
runs, on the CPU. Exit status 1 and one line then; 0 where CUDA computes, or where there is no GPU.
"""

import re
import shutil
import subprocess
import sys

import torch


def driver() -> tuple[str, str] | None:
    """The driver's version and the newest CUDA that it supports, by nvidia-smi; `None` where that finds no GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    found = subprocess.run(["nvidia-smi"], capture_output=True, text=True)
    if found.returncode:
        return None
    version, cuda = (re.search(rf"{name}: *([\d.]+)", found.stdout) for name in ("Driver Version", "CUDA Version"))
    return version[1] if version else "unknown", cuda[1] if cuda else "unknown"


def fault(version: str, cuda: str) -> str | None:
    """What keeps torch from a GPU whose driver is this, and what to do; `None` where it computes."""
    built = torch.version.cuda
    here = f"torch {torch.__version__} is built for CUDA {built}, driver {version} supports CUDA {cuda}"
    if built is None:
        here = f"torch {torch.__version__} is a build without CUDA beside a GPU"
        return f"{here}; make install here, or anywhere with GPU=yes"
    try:
        torch.ones(2, device="cuda").sum().item()
        return None
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
    if cuda != "unknown" and tuple(map(int, cuda.split("."))) < tuple(map(int, built.split("."))):
        return f"{here}: update the driver to one for CUDA {built} or newer"
    return f"{here}, and yet a sum on the GPU fails: {reason}"


def main() -> None:
    if (found := driver()) and (message := fault(*found)):
        sys.exit(f"error: CUDA cannot be used: {message}")


if __name__ == "__main__":
    main()
