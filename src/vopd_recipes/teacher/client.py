"""A connection to a vLLM server that holds the teacher: requests are sent again, and whether it is the same is asked.

Requests that fail in passing (no connection, 408, 429, 5xx, a time-out) are sent again, later and later, for
`timeout` seconds in all: a server that is started again in the middle of a run costs the wait and nothing else, if it
holds the same model. The first request that is given up ends all others, so that the process can end too.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
from transformers import PreTrainedTokenizerBase

from vopd_recipes.recipe import RecipeError

logger = logging.getLogger(__name__)

# vLLM batches what arrives together; more requests than this wait in its queue instead of here.
_CONCURRENCY = 64
# A single request may take this long, in seconds, or `timeout` if that is less, before it counts as lost.
_REQUEST_SECONDS = 300
_LONGEST_PAUSE = 30.0
_KEY_VARIABLE = "VOPD_TEACHER_API_KEY"

# What both tokenizers must split alike: words, code, digits, spaces, three scripts, an emoji, a template's marks.
_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x ** 2  # squares\n",
    r"Let $x=\frac{3}{4}$. Then \boxed{1234567890}.",
    "Größe, 知识, знание, \U0001f9ee",
    "<|im_start|>user\nhello<|im_end|>\n",
)


class TeacherUnavailable(RuntimeError):
    """The server cannot be had; one line says what was tried and for how long."""


class Refused(TeacherUnavailable):
    """The server says no, and would say so again."""


_clients: weakref.WeakSet[VLLMClient] = weakref.WeakSet()  # of this process


def give_up() -> bool:
    """At an interrupt: nothing is sent again, so that the process can end.

    Returns:
        Whether a request is under way, for which an interpreter's end waits, and which nothing ends.
    """
    for client in _clients:
        client.give_up()
    return any(client.is_waiting for client in _clients)


class VLLMClient:
    """A client of a vLLM server, whatever it is asked.

    Args:
        url: such as `http://node7:8000`; a key, where the server wants one, is in `VOPD_TEACHER_API_KEY`.
        model: its name there; `None` is the first that the server names.
        timeout: seconds to keep trying before giving up.
    """

    def __init__(self, url: str, model: str | None = None, timeout: float = 600.0) -> None:
        self._shown = _without_credentials(url)
        key = os.environ.get(_KEY_VARIABLE)
        self._client = httpx.Client(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=min(_REQUEST_SECONDS, timeout),
            limits=httpx.Limits(max_connections=_CONCURRENCY + 1),
        )
        self._pool = ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="teacher")
        self._model = model
        self._timeout = timeout
        self._identity: dict[str, Any] | None = None  # of the model that was checked
        self._failure: TeacherUnavailable | None = None  # why everything was given up
        self._given_up = threading.Event()
        self._away = False  # whether it was said that the server does not answer
        self._under_way: set[object] = set()
        self.received = 0  # bytes of answers so far
        _clients.add(self)

    def give_up(self) -> None:
        """Fail every request that waits, and any to come."""
        self._failure = self._failure or TeacherUnavailable("interrupted")
        self._given_up.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_waiting(self) -> bool:
        """Whether an answer is awaited."""
        return bool(self._under_way)

    @contextmanager
    def checked(self, tokenizer: PreTrainedTokenizerBase, longest: int) -> Iterator[None]:
        """Before training: the server answers, with this tokenizer, and has room for `longest` tokens; in the block it
        is tried as training will ask it, and after it its identity is known.

        Raises:
            RecipeError: it has not, with what to do about it.
        """
        try:
            entry = self._entry(patience=min(self._timeout, 30.0))
            self._model = entry["id"]
            room = entry.get("max_model_len")
            if room is not None and room < longest + 1:
                raise RecipeError(
                    f"teacher_server_url: {self._shown} takes {room} tokens, the longest prompt and completion have "
                    f"{longest}; start it with --max-model-len {longest + 1}"
                )
            self._check_tokenizer(tokenizer)
            yield
            self._identity = self._identify()
        except TeacherUnavailable as error:
            raise RecipeError(f"teacher_server_url: {error}") from error

    def confirm(self) -> None:
        """The model that was checked is still there: another under its name would score without an error.

        Raises:
            TeacherUnavailable: it is not, or the server cannot be had.
        """
        if self._identity is None:
            return
        found = self._identify()
        changes = [
            f"{name} {found[name]} instead of {old}" for name, old in self._identity.items() if found[name] != old
        ]
        if changes:
            raise TeacherUnavailable(f"{self._shown} holds another model than before: {', '.join(changes)}")

    def _identify(self) -> dict[str, Any]:
        entry = self._entry()
        named = {name: entry.get(name) for name in ("id", "root", "max_model_len")}
        return {**named, f"tokens of {_TEXTS[0]!r}": self._tokens(_TEXTS[0])}

    def _entry(self, patience: float | None = None) -> dict[str, Any]:
        """What the server says of the model."""
        models, _ = self._send("/v1/models", None, patience)
        with self._understood("/v1/models"):
            entry = next((model for model in models["data"] if self._model in (None, model["id"])), None)
            if entry is None:
                names = ", ".join(model["id"] for model in models["data"])
                raise Refused(f"{self._shown} has no {self._model}; it has {names}")
            return {**entry, "id": entry["id"]}

    def _tokens(self, text: str) -> list[int]:
        answer, _ = self._send("/tokenize", {"model": self._model, "prompt": text, "add_special_tokens": False})
        with self._understood("/tokenize"):
            return list(answer["tokens"])

    def _text(self, index: int) -> str:
        answer, _ = self._send("/detokenize", {"model": self._model, "tokens": [index]})
        with self._understood("/detokenize"):
            return str(answer["prompt"])

    def _check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for text in _TEXTS:
            theirs = self._tokens(text)
            ours = tokenizer.encode(text, add_special_tokens=False)
            if ours != theirs:
                raise RecipeError(
                    f"teacher_server_url: the tokenizer of {self._shown} differs from the student's: {text!r} is "
                    f"{ours[:8]} here and {theirs[:8]} there; on-policy distillation needs one vocabulary"
                )
        ids = range(0, len(tokenizer), max(1, len(tokenizer) // 64))
        for index, text in zip(ids, self._pool.map(lambda index: self._attempted(self._text, index), ids)):
            if (ours := tokenizer.decode([index])) != text:
                raise RecipeError(
                    f"teacher_server_url: the tokenizer of {self._shown} differs from the student's: id {index} is "
                    f"{ours!r} here and {text!r} there; on-policy distillation needs one vocabulary"
                )

    def _attempted(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What fails for good fails everything that waits as well: the interpreter ends only after all of it."""
        try:
            return call(*arguments)
        except TeacherUnavailable as error:
            self._failure = self._failure or error
            self._given_up.set()
            raise

    @contextmanager
    def _understood(self, path: str) -> Iterator[None]:
        """An answer that lacks what is read from it is one line, whatever it has instead."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise TeacherUnavailable(f"{self._shown}{path} gave an answer that vLLM would not: {what}") from error

    def _request(self, path: str, body: Any, read: Callable[[bytearray], Any] = json.loads) -> Any:
        """What is read of the answer; one that comes after failures counts once the same model is known to be back."""
        answer, failures = self._send(path, body, read=read)
        if failures:
            self.confirm()
        return answer

    def _send(
        self,
        path: str,
        body: Any,
        patience: float | None = None,
        read: Callable[[bytearray], Any] = json.loads,
    ) -> tuple[Any, int]:
        """What is read of the answer, tried again for as long as the failure may pass, and how often it failed."""
        patience = self._timeout if patience is None else patience
        start, pause, failures = time.monotonic(), 0.5, 0
        while not self._given_up.is_set():
            wait = None
            try:
                left = max(1.0, min(_REQUEST_SECONDS, patience - (time.monotonic() - start)))
                status, headers, content = self._exchange(path, body, left)
                if status < 300:
                    answer = read(content)
                    self._away = False
                    return answer, failures
                problem = f"{status}: {_message(content)}"
                if status not in (408, 429) and status < 500:
                    raise Refused(f"{self._shown}{path} answered {problem}")
                wait = _seconds(headers.get("retry-after"))
            except (httpx.RequestError, ValueError) as error:  # unreadable: cut off in the middle, badly compressed
                problem = f"{type(error).__name__}: {error}"
            failures += 1
            elapsed = time.monotonic() - start
            if elapsed >= patience:
                raise TeacherUnavailable(f"no answer from {self._shown}{path} for {elapsed:.0f} s; last: {problem}")
            if not self._away:
                self._away = True
                what = f"{self._shown}{path} does not answer ({problem}); trying again for {patience:.0f} s"
                logger.warning("the teacher's server: %s", what)
            wait = pause * random.uniform(0.5, 1.0) if wait is None else wait
            self._given_up.wait(min(wait, _LONGEST_PAUSE, max(0.05, patience - elapsed)))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise TeacherUnavailable(str(self._failure))

    def _exchange(self, path: str, body: Any, seconds: float) -> tuple[int, httpx.Headers, bytearray]:
        """One request and its answer: status, headers and what it says.

        Read in pieces, because a response that has its content is part of a circle, and stays with it, tens of
        megabytes of states, until Python next looks for those.
        """
        content = bytearray()
        with self._waiting():
            method = "GET" if body is None else "POST"
            with self._client.stream(method, path, json=body, timeout=seconds) as response:
                for piece in response.iter_bytes():
                    content += piece
        self.received += len(content)
        return response.status_code, response.headers, content

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        request = object()
        self._under_way.add(request)
        try:
            yield
        finally:
            self._under_way.discard(request)


def _message(content: bytearray) -> str:
    """What a vLLM error says, in one line."""
    try:
        said = json.loads(content)
        text = said.get("error", said)
        text = text.get("message", text) if isinstance(text, dict) else text
    except (ValueError, AttributeError):
        text = content.decode(errors="replace")
    return " ".join(str(text).split())[:300]


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None  # a date: the pause of our own is near enough


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
