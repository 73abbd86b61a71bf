"""What is to be published, kept on disk until it is up.

An entry is a folder `RUN/.hub-queue/000003-step-00000100`, written whole: a process killed at any moment leaves all of
it or nothing. Its weights are hard links to the checkpoint's, so that they cost no space and no time and outlive the
checkpoint's rotation; the small files beside them are copies, scrubbed of what is private. Only names on the list
below ever enter: no optimiser state, no pickle.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from vopd_recipes.files import written_whole
from vopd_recipes.hub.scrub import scrub_file
from vopd_recipes.recipe import RecipeError, is_hub_id

logger = logging.getLogger(__name__)

FOLDER = ".hub-queue"
MAIN = "main"

_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
# Rewritten value by value where they name something private.
_SCRUBBED = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json", "trainer_state.json",
    "recipe.yaml", "environment.json",
)  # fmt: skip
_COPIED = (
    "model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
# Of the run, beside every checkpoint.
OF_THE_RUN = ("recipe.yaml", "environment.json", "plots/training.png")
# A file system that has no hard links says one of these.
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


@dataclass(frozen=True)
class Target:
    """Where a run goes.

    Args:
        repo_id: model repository, `org/name`.
        private: of a repository that has to be created.
        merge: publish LoRA runs merged into their base as well, to `<repo_id>-merged`.
    """

    repo_id: str
    private: bool = True
    merge: bool = False

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Target:
        """What a recipe's `hub_*` fields say."""
        private = recipe.get("hub_private_repo") is not False
        return cls(str(recipe["hub_model_id"]), private, bool(recipe.get("hub_merge")))

    @property
    def repo_ids(self) -> list[str]:
        """Every repository that is written to."""
        return [self.repo_id, self.merged_repo_id] if self.merge else [self.repo_id]

    @property
    def merged_repo_id(self) -> str:
        """The merged model's own repository."""
        return f"{self.repo_id}-merged"

    def check_names(self) -> None:
        """A name that no client sends would wait in the queue for ever, as if the Hub were away.

        Raises:
            RecipeError: it is no repository's, or that of the merged model or of the results is none.
        """
        for name in [*self.repo_ids, f"{self.repo_id}-evals"]:
            if not is_hub_id(name):
                raise RecipeError(
                    f"hub_model_id: '{name}' can be no repository's name; name one as org/name, of letters, digits, "
                    "'-', '_' and '.', without '--' and '..', no '.git' or '.' at the end, of at most 96 characters"
                )


@dataclass(frozen=True)
class Entry:
    """One revision that waits.

    Args:
        folder: of the entry; `files/` in it is what goes up.
        target: where to.
        revision: the branch; `main` for a final model.
        tag: name of the release; `None`: the next free `v1`, `v2`, ….
        base: of an adapter: name or folder and revision of the model under it, as this machine knows it.
    """

    folder: Path
    target: Target
    revision: str
    tag: str | None = None
    base: tuple[str, str | None] | None = None

    @property
    def files(self) -> Path:
        """What goes up."""
        return self.folder / "files"


def step_revision(step: int) -> str:
    """The branch of a step."""
    return f"step-{step:08d}"


class Queue:
    """The entries of a run.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / FOLDER
        self.unreadable: list[str] = []  # folders of entries that the last look could not read

    def entries(self) -> list[Entry]:
        """Oldest first. One that cannot be read is passed over, with a warning: the others go up.

        Raises:
            OSError: the folder itself cannot be read.
        """
        read, unreadable = [], []
        try:
            found = sorted(self.folder.iterdir())  # glob takes a folder that it may not list for an empty one
        except FileNotFoundError:
            found = []
        for path in (path for path in found if path.name[0].isdigit()):
            try:
                read.append(_read(path))
            except FileNotFoundError:  # it has just gone up
                pass
            except (OSError, ValueError, KeyError, TypeError) as error:
                unreadable.append(path.name)
                if path.name not in self.unreadable:
                    why = type(error).__name__
                    logger.warning("%s cannot be read (%s) and is not published; remove it", path, why)
        self.unreadable = unreadable
        return read

    def left(self) -> list[str]:
        """What is not up, for people: revisions, and the folders of unreadable entries."""
        waiting = [entry.revision for entry in self.entries()]
        return [*waiting, *(f"{FOLDER}/{name}" for name in self.unreadable)]

    def add(self, source: Path, revision: str, target: Target, tag: str | None = None) -> Entry | None:
        """Queue what `source` holds, a checkpoint or the run's own folder; `None` where just that is queued already.

        Raises:
            OSError: the disk is full; nothing is left behind.
            FileNotFoundError: there are no weights.
        """
        weights = [path for path in sorted(source.iterdir()) if _matches(path.name, _WEIGHTS)]
        if not weights:
            raise FileNotFoundError(f"{source.name} holds no *.safetensors weights")
        queued = self.entries()
        alike = [entry for entry in queued if (entry.revision, entry.target) == (revision, target)]
        if any(tag in (None, entry.tag) and _same(entry, weights) for entry in alike):
            return None
        taken = [int(path.name.split("-")[0]) for path in self.folder.glob("[0-9]*-*")]
        number = max(taken, default=0) + 1
        folder = self.folder / f"{number:06d}-{revision}"
        base = _base(source)
        try:
            with written_whole(folder) as temporary:
                _fill(temporary / "files", source, self.run, weights)
                record = {"target": asdict(target), "revision": revision, "tag": tag, "base": base}
                (temporary / "entry.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError:
            shutil.rmtree(folder.with_name(f".{folder.name}.tmp"), ignore_errors=True)
            raise
        return Entry(folder, target, revision, tag, base)

    def check_room(self, checkpoint: Path) -> None:
        """Queued links keep weights on disk that rotation would free: they must not take the next checkpoint's room.

        Raises:
            OSError: another checkpoint as large as this one would not fit.
        """
        needed = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.run).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB free, the next checkpoint needs {needed / 1e9:.1f}")

    def discard(self, entry: Entry) -> None:
        """Forget an entry; one that is half removed when the process dies is no entry."""
        gone = entry.folder.with_name(f".{entry.folder.name}.done")
        entry.folder.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes left half-written or half-removed; nothing while another process works here."""
        with self.lock(lambda seconds: False) as ours:
            for path in self.folder.glob(".[0-9]*") if ours else []:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def lock(self, wait: Callable[[float], bool] | None = None) -> Iterator[bool]:
        """One uploader at a time; the system takes the lock from a process that dies.

        Args:
            wait: called with the seconds until the next try while another process has it; `False` gives up. By
                default nobody gives up.

        Yields:
            Whether this process has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            held = _locked(file)
            if not held and wait is None:
                logger.warning("%s: another process is uploading from here; waiting for it", self.run)
            while not held and (wait or _sleep)(1.0):
                held = _locked(file)
            yield held


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks: nobody can tell, and what waits is to go up
        logger.warning(
            "%s cannot be locked (%s): start no second uploader there", Path(file.name).parent, error.strerror
        )
    return True


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def _read(folder: Path) -> Entry:
    record = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    base = record["base"] and (record["base"][0], record["base"][1])
    return Entry(folder, Target(**record["target"]), record["revision"], record["tag"], base)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _same(entry: Entry, weights: list[Path]) -> bool:
    """Whether an entry's weights are links to these very files."""
    ours = [entry.files / path.name for path in weights]
    return all(mine.is_file() and mine.samefile(path) for mine, path in zip(ours, weights))


def _fill(files: Path, source: Path, run: Path, weights: list[Path]) -> None:
    files.mkdir(parents=True)
    for path in weights:
        link_or_copy(path, files / path.name)
    others = [path for path in sorted(source.iterdir()) if path.name in _SCRUBBED + _COPIED]
    for path in [*others, *(run / name for name in OF_THE_RUN if source != run or "/" in name)]:
        if path.is_file():
            copy = files / (path.relative_to(run) if path.is_relative_to(run / "plots") else path.name)
            copy.parent.mkdir(exist_ok=True)
            content = path.read_bytes()
            copy.write_bytes(scrub_file(content, path.name) if path.name in _SCRUBBED else content)


def link_or_copy(path: Path, copy: Path) -> None:
    """A second name for a file; a second file where the file system knows no links."""
    try:
        os.link(path, copy)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(path, copy)


def _base(source: Path) -> tuple[str, str | None] | None:
    """What an adapter is an adapter of."""
    path = source / "adapter_config.json"
    if not path.is_file():
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    local = Path(settings["base_model_name_or_path"])
    return (str(local.resolve()) if local.is_dir() else str(local), settings.get("revision"))
