"""Files and folders that are whole or not there: written under another name, renamed when done; places; hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vopd_recipes.recipe import RecipeError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the name to write to, a file's or a folder's; it becomes `path` when the block ends without an error.

    A file takes the place of an older one. A folder does not: writing over one is an error. What was written is on the
    disk before it gets its name: else a machine that stops leaves the name with nothing in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.is_dir():  # a process was killed while it wrote this folder
        shutil.rmtree(temporary)
    yield temporary
    to_disk(temporary)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(folder: Path, name: str) -> None:
    """Make a folder and try a file in it: before minutes or hours go into what is to lie there.

    Args:
        folder: where something will be written.
        name: of the flag or field that says so.

    Raises:
        RecipeError: it cannot be made, or takes no file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\n")
    except OSError as error:
        raise RecipeError(
            f"{name}: nothing can be written to {folder} ({error.strerror}); name another place"
        ) from None


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal; read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_disk(path: Path) -> None:
    """Wait until a file, or every file below a folder, is on the disk."""
    for written in [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]:
        _to_disk(written)


def _to_disk(path: Path) -> None:
    if path.stat().st_nlink > 1:  # a second name for a file that was there before: gigabytes, and not ours to wait for
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
