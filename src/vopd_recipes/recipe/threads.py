"""How many CPU threads a process uses: its share of the cores, unless the user has said.

Launchers set `OMP_NUM_THREADS=1` where nobody has set it (accelerate for one process too), and vLLM takes an unset one
for 1. DeepSpeed's Adam of an offloaded optimiser then takes ten times as long. What a launcher set is told from what a
user set by the launcher's own environment, as it was when that was started.

No import here brings torch along: it reads the variable once, while it is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "OMP_NUM_THREADS"
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, in µs of a period: "1600000 100000" is sixteen cores


def take_cpu_share() -> None:
    """Set `OMP_NUM_THREADS` to this process's share of the cores, for torch and for what it starts."""
    if _was_chosen():
        return
    share = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    os.environ[VARIABLE] = str(share)
    if torch := sys.modules.get("torch"):  # which has read the variable already
        torch.set_num_threads(share)


def available_cores() -> int:
    """Physical cores that this process may run on, or fewer by its container's quota."""
    import psutil  # late: the commands that only read recipes need none

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    quota, _, period = _QUOTA.read_text().partition(" ") if _QUOTA.is_file() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _was_chosen() -> bool:
    """Whether a person set the variable, and not the launcher."""
    launched = os.environ.keys() & {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
    if VARIABLE not in os.environ or os.environ[VARIABLE] != "1" or not launched:
        return VARIABLE in os.environ
    try:
        before = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:  # no such thing here: whatever is set stays
        return True
    return any(entry.startswith(f"{VARIABLE}=".encode()) for entry in before.split(b"\0"))
