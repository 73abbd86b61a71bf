"""The model that lighteval drives: it asks the store first and an engine for the rest.

lighteval hands over the questions of all tasks in one call, so that one engine start serves them all. An engine is
started only where an answer is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from evaluation.engines import Engine, Request
from evaluation.harness import Doc, LightevalModel, ModelConfig, ModelResponse
from evaluation.protocol import Drawing, Protocol
from evaluation.responses import Response, ResponseStore, question_key
from vopd_recipes.prompts import encode_text
from vopd_recipes.recipe import RecipeError, one_line
from vopd_recipes.rollout import RolloutFailed


@dataclass
class Answers(ModelResponse):
    """lighteval's response, with what it has no room for.

    Args:
        seed: of sample 0.
        opens_thinking: the prompt ends in `<think>`, so that a completion begins with reasoning.
        responses: every sample, in order.
    """

    seed: int = 0
    opens_thinking: bool = False
    responses: list[Response] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A question as the model reads it."""

    token_ids: list[int]
    seed: int
    drawing: Drawing
    count: int
    opens_thinking: bool = False

    @property
    def key(self) -> str:
        return question_key(self.token_ids, self.seed)


def encode(tokenizer: PreTrainedTokenizerBase, protocol: Protocol, prompt: str) -> list[int]:
    """A prompt's tokens: raw as in training, or by the chat template.

    Raises:
        RecipeError: the tokenizer has no chat template, or it cannot render the prompt.
    """
    if not protocol.chat_template:
        return encode_text(prompt, tokenizer)
    if not tokenizer.chat_template:
        raise RecipeError(
            f"protocol {protocol.name} needs a chat template and the model has none; set CHAT_TEMPLATE=0"
        )
    try:
        encoded: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            enable_thinking=protocol.thinking,
        )
    except Exception as error:  # templates raise what they like
        raise RecipeError(
            f"the model's chat template cannot render {prompt[:80]!r}: {one_line(error, 300)}"
        ) from error
    return list(encoded["input_ids"])


def opens_thinking(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> bool:
    """Whether a prompt ends in `<think>`, as the templates of some reasoning models leave it."""
    return str(tokenizer.decode(token_ids[-16:])).rstrip().endswith("<think>")


def facts(doc: Doc) -> dict[str, Any]:
    """A document's `question`, `gold` and `letters`."""
    assert doc.specific is not None
    return doc.specific


def seed_of(task: str, question: str) -> int:
    """The seed of a question's first sample; the others' follow. The same for every model, so that runs are paired."""
    return int.from_bytes(hashlib.sha256(f"{task}\n{question}".encode()).digest()[:4]) >> 1


class EvaluatedModel(LightevalModel):
    """lighteval's model class over a store and an engine.

    Args:
        name: for lighteval's own records.
        tokenizer: the model's.
        asked: of each lighteval document, by task and id.
        stores: the store of a drawing.
        start: starts the engine; the argument is the greatest number of tokens that it will hold of one sequence.
    """

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        asked: Callable[[Doc], Asked],
        stores: Callable[[Drawing], ResponseStore],
        start: Callable[[int], Engine],
    ) -> None:
        self.config = ModelConfig(model_name=name)
        self._cache = _NoCache()
        self._tokenizer = tokenizer
        self._asked, self._stores, self._start = asked, stores, start

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        """As in training."""
        return True

    @property
    def max_length(self) -> int:
        """Checked before lighteval starts, a task at a time."""
        return 1 << 30

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Every sample of every document; lighteval's name, the protocol's sampling.

        Raises:
            RecipeError: the weights cannot be loaded.
            RolloutFailed: the engine cannot continue.
        """
        asked = [self._asked(doc) for doc in docs]
        different = {(question.key, question.drawing, question.count): question for question in asked}
        requests = [request for question in different.values() for request in self._missing(question)]
        engine = self._engine(requests)
        total = sum(question.count for question in asked)
        missing = sum(request.count for request in requests)
        with tqdm(total=total, initial=total - missing, desc="Answers", unit="") as bar:
            for batch in _drawn(engine, requests):
                self._keep(batch)
                bar.update(len(batch))
        return [self._answers(doc, question) for doc, question in zip(docs, asked)]

    def _engine(self, requests: list[Request]) -> Engine | None:
        if not requests:
            return None
        return self._start(max(len(request.token_ids) + request.drawing.max_new_tokens for request in requests))

    def _missing(self, asked: Asked) -> list[Request]:
        """One request for all that is missing of a question; the samples before it are there."""
        key, count, store = asked.key, asked.count, self._stores(asked.drawing)
        there = next((sample for sample in range(count) if store.get(key, sample) is None), count)
        request = Request(key, asked.token_ids, asked.seed, there, count - there, asked.drawing)
        return [request] if there < count else []

    def _keep(self, batch: list[tuple[Request, Response]]) -> None:
        by_drawing: dict[Drawing, list[Response]] = {}
        for request, response in batch:
            by_drawing.setdefault(request.drawing, []).append(response)
        for drawing, responses in by_drawing.items():
            self._stores(drawing).add(responses)

    def _answers(self, doc: Doc, question: Asked) -> Answers:
        store = self._stores(question.drawing)
        found = [store.get(question.key, sample) for sample in range(question.count)]
        responses = [response for response in found if response is not None]
        if len(responses) < question.count:
            raise RuntimeError(f"{doc.task_name}: {question.count - len(responses)} answers did not come")
        return Answers(
            input=doc.query,
            input_tokens=question.token_ids,
            text=[response.text for response in responses],
            seed=question.seed,
            opens_thinking=question.opens_thinking,
            responses=responses,
        )

    def loglikelihood(self, docs: list[Doc]) -> NoReturn:
        """No task here asks for it."""
        raise NotImplementedError("tasks here are generative, not scored by log-likelihood")

    def loglikelihood_rolling(self, docs: list[Doc]) -> NoReturn:
        """No task here asks for it."""
        raise NotImplementedError("tasks here are generative, not scored by log-likelihood")


def _drawn(engine: Engine | None, requests: list[Request]) -> Iterator[list[tuple[Request, Response]]]:
    if engine is None:
        return
    try:
        yield from engine.run(requests)
    except Exception as error:  # out of memory, a dead engine: engines raise what they like
        reason = f"{type(error).__name__}: {one_line(error, 300)}"
        raise RolloutFailed(
            f"answers stopped coming: {reason}; those so far are kept, and the same command resumes"
        ) from error


class _NoCache:
    """Stands where lighteval expects a cache of its own, which would be keyed without the weights."""

    def _init_registry(self, registry: object) -> None:
        """lighteval tells its cache about its tasks."""


def stores(folder: Path, weights_hash: str, settings: dict[str, Any]) -> Callable[[Drawing], ResponseStore]:
    """The store of each drawing, opened once.

    Args:
        folder: of all stores.
        weights_hash: of the model.
        settings: what decides a completion besides weights, prompt, seed and drawing.
    """
    return cache(lambda drawing: ResponseStore(folder, weights_hash, {**settings, **asdict(drawing)}))
