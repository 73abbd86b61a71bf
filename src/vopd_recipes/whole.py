"""Files and folders that are whole or not there: written under another name, renamed when they are done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the name to write to, a file's or a folder's; it becomes `path` when the block ends without an error.

    A file takes the place of an older one. A folder does not: writing over one is an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.is_dir():  # a process was killed while it wrote this folder
        shutil.rmtree(temporary)
    yield temporary
    temporary.replace(path)
