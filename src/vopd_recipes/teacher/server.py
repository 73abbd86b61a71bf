"""A teacher too large for the trainer: a stock vLLM server scores the completions.

One request per sequence. `POST /v1/completions` with `prompt_logprobs: k` answers, at every position, the token that
is there and the k most likely ones. The sampled token must not be in the support merely because it was sampled, or the
baseline would depend on it and the gradient be biased: where a position has k + 1 entries, it is the one too many.

With `support: student` the ids are the caller's: `POST /inference/v1/generate` with
`prompt_logprob_token_ids`, which vLLM has on GPUs and behind `--enable-scale-out`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from vopd_recipes.loss import Scores
from vopd_recipes.recipe import RecipeError
from vopd_recipes.teacher.client import Refused, TeacherUnavailable, VLLMClient

# vLLM writes log 0 as this.
_IMPOSSIBLE = -9999.0


class TeacherServer(VLLMClient):
    """A client of a vLLM server that scores completions: a `ScoringClient`.

    Args:
        url: such as `http://node7:8000`; a key, where the server wants one, is in `VOPD_TEACHER_API_KEY`.
        model: its name there; `None` is the first that the server names.
        support_top_k: k, or 0 where the method needs no support.
        timeout: seconds to keep trying before giving up.
    """

    def __init__(self, url: str, model: str | None = None, support_top_k: int = 0, timeout: float = 600.0) -> None:
        super().__init__(url, model, timeout)
        self.support_top_k = support_top_k

    def check(self, tokenizer: PreTrainedTokenizerBase, longest: int, student_support: bool = False) -> None:
        """Before training: see `VLLMClient.checked`; and the server gives k scores.

        Raises:
            RecipeError: it does not, with what to do about it.
        """
        with self.checked(tokenizer, longest):
            self._probe(tokenizer, student_support)

    def _probe(self, tokenizer: PreTrainedTokenizerBase, student_support: bool) -> None:
        """Score two tokens as training will: what the server was started without shows here."""
        ids = tokenizer.encode("2 + 2 = 4", add_special_tokens=False)
        support = torch.arange(self.support_top_k).expand(len(ids) - 1, -1) if student_support else None
        try:
            self._score(ids[:1], ids[1:], support)
        except Refused as error:
            hint = ""
            if not student_support and " answered 404" in str(error):
                hint = "; it is no server that completes text: start it without --runner pooling, or set "
                hint += "teacher_server_scores: hidden_states"
            if "logprobs" in str(error):
                hint = f"; start it with --max-logprobs {self.support_top_k + bool(student_support)} or more"
            if student_support:
                hint += "; support: student needs a GPU server started with --enable-scale-out"
            raise RecipeError(f"teacher_server_url: {error}{hint}") from error

    def submit(
        self, prompt_ids: list[int], completion_ids: list[int], support: torch.Tensor | None = None
    ) -> Future[Any]:
        """Ask for the scores of one completion; the future's result is its `Scores`.

        Args:
            prompt_ids: its prompt.
            completion_ids: n tokens.
            support: [n, k] ids to score; `None` is the teacher's own k most likely.
        """
        return self._pool.submit(self._attempted, self._score, prompt_ids, completion_ids, support)

    def _score(self, prompt_ids: list[int], completion_ids: list[int], support: torch.Tensor | None) -> Scores:
        if support is not None:
            return self._score_ids(prompt_ids, completion_ids, support)
        body = {
            "model": self._model,
            "prompt": prompt_ids + completion_ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": self.support_top_k,
        }
        answer = self._request("/v1/completions", body)
        with self._understood("/v1/completions"):
            positions = answer["choices"][0]["prompt_logprobs"][len(prompt_ids) :]
            if len(positions) != len(completion_ids):
                raise TeacherUnavailable(
                    f"{self._shown} scored {len(positions)} of {len(completion_ids)} tokens; is it a vLLM server?"
                )
            return read_scores(positions, completion_ids, self.support_top_k)

    def _score_ids(self, prompt_ids: list[int], completion_ids: list[int], support: torch.Tensor) -> Scores:
        rows = [[token, *ids] for token, ids in zip(completion_ids, support.tolist())]
        parameters = {
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprob_token_ids": rows,
            "prompt_logprob_start": len(prompt_ids) - 1,
        }
        body = {"model": self._model, "token_ids": prompt_ids + completion_ids, "sampling_params": parameters}
        answer = self._request("/inference/v1/generate", body)
        with self._understood("/inference/v1/generate"):
            encoded = answer.get("prompt_token_id_logprobs")
            if encoded is None:
                raise Refused(f"{self._shown} does not score given ids (prompt_token_id_logprobs is missing)")
            array = np.lib.format.read_array(io.BytesIO(base64.b64decode(encoded)), allow_pickle=False)
            logprobs = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        if logprobs.shape != (len(completion_ids), support.shape[1] + 1):
            raise TeacherUnavailable(f"{self._shown} scored {tuple(logprobs.shape)} ids instead of those asked for")
        _check_possible(logprobs[:, 0], completion_ids)
        return Scores(logprobs[:, 0], support.cpu(), logprobs[:, 1:])


def read_scores(positions: Sequence[dict[str, Any]], completion_ids: list[int], k: int) -> Scores:
    """From the answer's `prompt_logprobs`, one entry {id: {logprob, rank}} per completion token.

    Raises:
        TeacherUnavailable: a sampled token is impossible, or missing: the models do not share their vocabulary.
    """
    n = len(completion_ids)
    logprobs, ids = torch.empty(n), torch.full((n, k), -1)
    support = torch.zeros(n, k)
    for row, (entries, token) in enumerate(zip(positions, completion_ids)):
        found = {int(name): entry for name, entry in entries.items()}
        if token not in found:
            raise TeacherUnavailable(f"the server gives no log-probability for token {token}")
        logprobs[row] = found[token]["logprob"]
        if len(found) > k:  # only the sampled token can be one too many
            del found[token]
        ranked = sorted(found, key=lambda index: (-found[index]["logprob"], index))
        for column, index in enumerate(ranked):
            ids[row, column], support[row, column] = index, found[index]["logprob"]
    _check_possible(logprobs, completion_ids)
    return Scores(logprobs, ids, support)


def _check_possible(logprobs: torch.Tensor, completion_ids: list[int]) -> None:
    """An infinite reward would be the only thing that the step learns."""
    impossible = (~logprobs.isfinite() | (logprobs <= _IMPOSSIBLE)).nonzero()[:, 0].tolist()
    if impossible:
        raise TeacherUnavailable(
            f"the teacher gives token {completion_ids[impossible[0]]} probability 0; do both models know it?"
        )
