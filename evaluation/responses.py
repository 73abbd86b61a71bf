"""Answers that were given, kept as they come: a killed evaluation resumes where it was.

One file of JSON lines per (weights, way of drawing): `<weights hash>/<hash of the drawing>.jsonl`. A line is one
batch, so that a line which a kill cut short loses the whole batch, and the batch is drawn again as it was.
lighteval's own cache knows nothing of the weights and would answer for a model that was trained again in the same
place.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Response:
    """One completion.

    Args:
        key: of the question, see `question_key`.
        sample: which of its completions.
        text: without special tokens.
        tokens: how many were drawn, the end token included.
        finished: it ended by itself.
        seconds: its share of the time that generation took.
    """

    key: str
    sample: int
    text: str
    tokens: int
    finished: bool
    seconds: float


def question_key(token_ids: list[int], seed: int) -> str:
    """What a question is known by: the very tokens that the model reads, and the seed."""
    return hashlib.sha256(json.dumps([token_ids, seed]).encode()).hexdigest()[:32]


class ResponseStore:
    """The answers of one model, drawn in one way.

    Args:
        folder: of every store.
        weights_hash: of the model.
        drawing: all that decides a completion besides weights, prompt and seed.
    """

    def __init__(self, folder: Path, weights_hash: str, drawing: dict[str, Any]) -> None:
        name = hashlib.sha256(json.dumps(drawing, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / weights_hash[:16] / f"{name}.jsonl"
        self._found: dict[tuple[str, int], Response] = {}
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        for line in content.splitlines():
            try:
                batch = [Response(**fields) for fields in json.loads(line)]
            except (ValueError, TypeError):
                continue  # cut short by a kill
            self._remember(batch)
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def _remember(self, batch: list[Response]) -> None:
        for response in batch:
            self._found.setdefault((response.key, response.sample), response)

    def _append(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:  # in one piece as far as the system does, and whole in any case
            file.write(content)

    def get(self, key: str, sample: int) -> Response | None:
        """An answer that was given before."""
        return self._found.get((key, sample))

    def add(self, batch: list[Response]) -> None:
        """Keep a batch of answers: on disk when this returns."""
        self._append(json.dumps([asdict(response) for response in batch]).encode() + b"\n")
        self._remember(batch)
