r"""A teacher behind a server that returns hidden states: every estimator is exact, at 2·H bytes a token.

A stock vLLM pooling server gives each position's final hidden state h, after the last norm; the head W is read here
from the model's own checkpoint, so that

    log q(·|c_t) = log_softmax(softcap · tanh(scale · (W h_t + b) / softcap))

is the teacher's whole distribution, and the teacher shares nothing with the training machines but a network:

    vllm serve MODEL --runner pooling --convert embed --pooler-config.task token_embed --max-model-len N

A window's states are asked for at once, micro-batch by micro-batch in the order of training, with no more than
`IN_FLIGHT_BYTES` requested or kept at a time; the student trains on the first micro-batch as soon as that is there.
The prompt's rows come as well and are dropped on arrival, when an answer is there twice for a moment. What is said of
a server that is away in `logprobs.py` holds here too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vopd_recipes.loss import Head
from vopd_recipes.models import scale_logits
from vopd_recipes.packing import MicroBatch, Sample
from vopd_recipes.recipe import RecipeError
from vopd_recipes.teacher.client import Refused, TeacherUnavailable, VLLMClient
from vopd_recipes.teacher.hidden_states import HiddenStatesView
from vopd_recipes.teacher.interface import TeacherView

# Of states that are asked for or wait for their micro-batch, on one process, beside those of the micro-batch that is
# trained on; a single larger one is asked for alone. Two seconds of a 10 Gbit/s network.
IN_FLIGHT_BYTES = 2 * 2**30
_PROBE = "The quick brown fox jumps over the lazy dog."
# Mean entropy above this share of log V: states that are not this head's, or a model that has learnt nothing.
_UNIFORM_ENTROPY_SHARE = 0.98


class StatesServer(VLLMClient):
    """A client of a vLLM pooling server.

    Args:
        url: such as `http://node7:8000`; a key, where the server wants one, is in `VOPD_TEACHER_API_KEY`.
        model: its name there; `None` is the first that the server names.
        dtype: in which states travel, `torch.float32` or `torch.bfloat16`.
        timeout: seconds to keep trying before giving up.
    """

    def __init__(self, url: str, model: str | None, dtype: torch.dtype, timeout: float = 600.0) -> None:
        super().__init__(url, model, timeout)
        self.dtype = dtype
        self.width: int | None = None  # of a state, once a head is known that reads them

    def check(self, tokenizer: PreTrainedTokenizerBase, longest: int, head: Head) -> None:
        """Before training: see `VLLMClient.checked`; and the server's states are those that `head` reads.

        Raises:
            RecipeError: they are not, with what to do about it.
        """
        with self.checked(tokenizer, longest):
            ids = tokenizer.encode(_PROBE, add_special_tokens=False)
            try:
                states = self._states(ids[:1], ids[1:]).float()
            except Refused as error:
                raise RecipeError(
                    f"teacher_server_url: {error}; start it as a pooling server of states: --runner pooling --convert "
                    "embed --pooler-config.task token_embed, or set teacher_server_scores: logprobs"
                ) from error
            self._check_states(states, head)

    def _check_states(self, states: Tensor, head: Head) -> None:
        where = f"teacher_server_url: the states of {self._shown}"
        given, read = states.shape[1], head.weight.shape[1]
        if given != read:
            twice = 2 * given == read or given == 2 * read
            raise RecipeError(
                f"{where} are {given} wide, the head of teacher_model_name_or_path {read}; both must be of one model"
                + (f", and the server send {self.dtype}, as it is asked to (embed_dtype)" if twice else "")
            )
        if ((states.norm(dim=-1) - 1).abs() < 1e-2).all():
            raise RecipeError(f"{where} are of length 1: it normalises them (use_activation), which loses their scale")
        logits = scale_logits(torch.nn.functional.linear(states, head.weight.float(), _float(head.bias)), head)
        entropy, most = torch.distributions.Categorical(logits=logits).entropy().mean(), math.log(len(head.weight))
        if entropy > _UNIFORM_ENTROPY_SHARE * most:
            raise RecipeError(
                f"{where} give a uniform distribution under the head of teacher_model_name_or_path (entropy "
                f"{entropy:.2f} nats of {most:.2f}); are they of one model, and were its weights loaded?"
            )

    def submit(self, prompt_ids: list[int], completion_ids: list[int]) -> Future[Tensor]:
        """Ask for the states that predict one completion; the future's result is [n, H] in `dtype`, on the CPU."""
        return self._pool.submit(self._attempted, self._states, prompt_ids, completion_ids)

    def _states(self, prompt_ids: list[int], completion_ids: list[int]) -> Tensor:
        inputs = prompt_ids + completion_ids[:-1]  # the last token is predicted and predicts nothing
        body = {
            "model": self._model,
            "input": inputs,
            "task": "token_embed",
            "use_activation": False,
            "encoding_format": "bytes_only",
            "embed_dtype": str(self.dtype).removeprefix("torch."),
        }
        content = self._request("/pooling", body, _as_it_comes)
        width, rest = divmod(len(content), len(inputs) * self.dtype.itemsize)
        if rest or width == 0 or width != (self.width or width):
            raise TeacherUnavailable(
                f"{self._shown} answered {len(content):,} bytes for {len(inputs)} tokens of {self.dtype}; is it a "
                "vLLM pooling server with --pooler-config.task token_embed?"
            )
        rows = torch.frombuffer(content, dtype=self.dtype).view(len(inputs), width)[len(prompt_ids) - 1 :].clone()
        if not rows.isfinite().all():
            raise TeacherUnavailable(f"{self._shown} gives states that are not finite")
        return rows


def _as_it_comes(content: bytearray) -> bytearray:
    return content


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


class StatesTeacher:
    """A `Teacher` whose hidden states come from a server and whose head is here.

    Args:
        server: where it is.
        head: the teacher's.
        in_flight_bytes: of states that are asked for or wait.
        compiled: see `fused_loss`.
    """

    remote, collective = True, False

    def __init__(
        self, server: StatesServer, head: Head, in_flight_bytes: int = IN_FLIGHT_BYTES, compiled: bool = False
    ) -> None:
        self.server, self.head, self.vocabulary, self.compiled = server, head, len(head.weight), compiled
        self._in_flight_bytes = in_flight_bytes
        server.width = head.weight.shape[1]

    def head_on(self, device: torch.device) -> Head:
        """The head, moved to the student's device at its first use."""
        if self.head.weight.device != device:
            self.head = self.head.to(device)
        return self.head

    def views(self, batches: Sequence[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """States of the window, requested as far as there is room for them; the first are waited for here.

        Raises:
            TeacherUnavailable: the server cannot be had, or holds another model.
        """
        self.server.confirm()  # started again between two windows, it may hold another model
        window = _Window(self.server, batches, self.head.weight.shape[1], self._in_flight_bytes)
        window.wait_for_first()
        return [partial(StatesView, self, window)] * len(batches)


class _Window:
    """Micro-batches in the order of training: asked for as room allows, handed out one by one."""

    def __init__(self, server: StatesServer, batches: Sequence[MicroBatch], width: int, budget: int) -> None:
        self._server, self._room = server, budget
        self._bytes = width * server.dtype.itemsize  # of a token
        self._to_ask = deque(batches)
        self._asked: deque[tuple[int, list[Future[Tensor]]]] = deque()
        self._ask()

    def _ask(self) -> None:
        while self._to_ask:
            samples = self._to_ask[0].samples
            need = sum(map(_tokens, samples)) * self._bytes
            if need > self._room and self._asked:
                return
            self._to_ask.popleft()
            self._room -= need
            futures = [self._server.submit(sample.prompt_ids, sample.completion_ids) for sample in samples]
            self._asked.append((need, futures))

    def wait_for_first(self) -> None:
        """A server that is away is noticed while this step's state can still be saved."""
        for future in next((futures for _, futures in self._asked if futures), []):
            future.result()

    def take(self) -> list[Future[Tensor]]:
        """States of the next micro-batch, waited for, in the order of its row; their room goes to those after it."""
        need, futures = self._asked.popleft()
        wait(futures)
        self._room += need
        self._ask()
        return futures


def _tokens(sample: Sample) -> int:
    """Rows that come for it, the prompt's as well."""
    return len(sample.prompt_ids) + len(sample.completion_ids)


class StatesView(HiddenStatesView):
    """A micro-batch's states, waited for here, and the head to read them with."""

    def __init__(self, teacher: StatesTeacher, window: _Window) -> None:
        super().__init__(teacher.compiled)
        self._teacher, self._futures = teacher, window.take()

    def states_and_head(self, hidden: Tensor, head: Head) -> AbstractContextManager[tuple[Tensor, Head]]:
        """See `HiddenStatesView`.

        Raises:
            TeacherUnavailable: the server cannot be had.
        """
        teacher = self._teacher.head_on(hidden.device)
        states = [future.result() for future in self._futures] or [teacher.weight[:0].cpu()]
        return nullcontext((torch.cat(states).to(hidden.device), teacher))
