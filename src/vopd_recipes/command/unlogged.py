"""What others log is not for whoever typed a command: of configurations that are only read, of a launcher's end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unlogged(level: int) -> Iterator[None]:
    """In the block nothing up to that level is logged, by anybody in this process."""
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
