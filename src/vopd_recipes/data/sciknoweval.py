"""SciKnowEval: which questions train and which test, and how a multiple-choice question is written.

Data preparation and evaluation share this file, so that no question which a model was trained on is asked in its test.
The split is the community's (SDPO's; the paper's 1,890 chemistry prompts are its training part): one domain, level L3,
questions with two or four choices, then `train_test_split(0.1, seed=42)` in the order of the data set. Rows that are
no question at all (`defect`) do not count, here and nowhere else: one row more or less deals all of them anew. The
data set repeats some questions; a training row whose question is also a test row's is left out here.

Rows are the Hub's (`hicai-zju/SciKnowEval`): `{"question", "choices": {"text", "label"}, "answerKey", "type",
"domain", "details": {"level", …}}`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from vopd_recipes.data.words import words_of

logger = logging.getLogger(__name__)

DATASET = "hicai-zju/SciKnowEval"
DOMAINS = ("Biology", "Chemistry", "Material", "Physics")
LEVELS = ("L1", "L2", "L3", "L4", "L5")
INSTRUCTION = (
    'Return only one JSON object with the key "answer". The value must be exactly one choice letter, for example: '
    '{"answer": "C"}.'
)

_TYPES = ("mcq-2-choices", "mcq-4-choices")
_TEST_SHARE, _SEED = 0.1, 42

Row = Mapping[str, Any]


def split(rows: Iterable[Row], domain: str, level: str = "L3") -> tuple[list[Row], list[Row]]:
    """Training and test rows of a domain.

    Args:
        rows: of the whole data set, in its order, which the split depends on.
        domain: one of `DOMAINS`.
        level: one of `LEVELS`.

    Raises:
        ValueError: an unknown domain or level, or fewer than two of its questions are there.
    """
    if domain not in DOMAINS:
        raise ValueError(f"SciKnowEval has no domain {domain!r}; it has {', '.join(DOMAINS)}")
    if level not in LEVELS:
        raise ValueError(f"SciKnowEval has no level {level!r}; it has {', '.join(LEVELS)}")
    kept: list[Row] = []
    defects: Counter[str] = Counter()
    for row in rows:
        if why := defect(row, domain, level):
            defects[why] += 1
        elif belongs(row, domain, level):
            kept.append(row)
    broken = "; malformed rows: " + ", ".join(f"{count} ({why})" for why, count in defects.items()) if defects else ""
    if len(kept) < 2:
        raise ValueError(
            f"SciKnowEval: {len(kept)} questions of {domain}, level {level}; two or more make a split{broken}"
        )
    if broken:
        logger.warning("SciKnowEval %s%s", domain, broken)
    parts = Dataset.from_dict({"row": range(len(kept))}).train_test_split(_TEST_SHARE, seed=_SEED)
    test = [kept[index] for index in parts["test"]["row"]]
    asked = {identity(row) for row in test}
    train = [kept[index] for index in parts["train"]["row"]]
    fresh = [row for row in train if identity(row) not in asked]
    if len(fresh) < len(train):
        logger.warning(
            "SciKnowEval %s: %d training rows repeat a test question: left out", domain, len(train) - len(fresh)
        )
    return fresh, test


def belongs(row: Row, domain: str, level: str) -> bool:
    """Whether a row is a multiple-choice question of this domain and level."""
    return row["domain"] == domain and row["details"]["level"] == level and row["type"] in _TYPES


def defect(row: object, domain: str, level: str) -> str | None:
    """Why a row is no question that the split could count; `None` also for a question of another domain."""
    if not isinstance(row, Mapping):
        return "not an object"
    try:
        if belongs(row, domain, level):
            "".join([row["question"], *row["choices"]["text"]]).encode()
    except KeyError as error:
        return f"no column {error}"
    except UnicodeEncodeError:
        return "broken Unicode"
    except (TypeError, AttributeError):
        return "a column of the wrong type"
    return None


def identity(row: Row) -> str:
    """What makes two rows the same question: its words, whatever their typesetting, and its choices in any order."""
    return "\n".join([words_of(row["question"]), *sorted(words_of(choice) for choice in row["choices"]["text"])])


def question_text(row: Row) -> str:
    """The question with its lettered choices."""
    return multiple_choice(row["question"], row["choices"]["text"], row["choices"]["label"])


def multiple_choice(question: str, choices: Sequence[str], labels: Sequence[str] = "ABCD") -> str:
    """A question and a line for each choice: `A. …`."""
    lines = [f"{label}. {choice.strip()}" for label, choice in zip(labels, choices)]
    return "\n".join([question.strip() + "\n", *lines])


def prompt(row: Row) -> str:
    """The paper's science prompt, without chat template."""
    return f"{question_text(row)}\n\n{INSTRUCTION}"
