"""Memory that the processes of a vLLM engine share on a CPU: under a name of its own, which goes once all have it.

vLLM names it after the launcher's address, which is `env://` for every engine of `external_launcher`, and takes it
away when its process ends in peace. So a second run beside the first would not start, nor any run after one that was
killed ("create shm in SHMManager failed. errno: 17"). What is mapped stays mapped without a name.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = Path("/dev/shm")


@contextmanager
def shared_under(name: str) -> Iterator[None]:
    """For an engine that starts inside.

    Args:
        name: the same in each of its processes, and no other engine's.
    """
    module: Any = importlib.import_module("vllm.distributed.device_communicators.cpu_communicator")
    vllms = module._CPUSHMDistributed.make_group_name
    own = staticmethod(lambda communicator: f"{name}-{vllms(communicator).lstrip('/')}")
    module._CPUSHMDistributed.make_group_name = own
    try:
        yield
    finally:
        module._CPUSHMDistributed.make_group_name = staticmethod(vllms)
        for file in _NAMES.glob(f"{name}-*"):
            file.unlink(missing_ok=True)
