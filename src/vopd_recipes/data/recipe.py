"""A data recipe becomes typed values, checked before anything is read.

One flat YAML file, as recipes of runs are: `extends` and `--field value` work alike. `evaluation_sets` is a list of
sources by name; what stands in one of them is not trained on.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from vopd_recipes.data.sciknoweval import DOMAINS, LEVELS
from vopd_recipes.recipe import RecipeError, check_fields, coerce, read_fields


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from and which of their columns count.

    Args:
        source: `columns` reads any table by the names of its columns, `sciknoweval` that data set by its split.
        dataset_name: Hub id, or a local .jsonl, .json or .parquet file.
        dataset_config: configuration of a Hub data set.
        dataset_revision: branch, tag or commit of a Hub data set.
        dataset_split: split of a Hub data set.
        prompt_column: text, or a list that holds one chat message of the user; `a.b` is field b of column a.
        choices_column: texts of the choices, or `{"text", "label"}`; they are written under the prompt.
        domain: of SciKnowEval.
        level: of SciKnowEval.
    """

    source: Literal["columns", "sciknoweval"] = "columns"
    dataset_name: str
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_split: str = "train"
    prompt_column: str = "prompt"
    choices_column: str | None = None
    domain: str | None = None
    level: str = "L3"

    def __post_init__(self) -> None:
        if self.source == "sciknoweval":
            _require(self.domain in DOMAINS, f"domain must be one of {', '.join(DOMAINS)}, got {self.domain!r}")
            _require(self.level in LEVELS, f"level must be one of {', '.join(LEVELS)}, got {self.level!r}")
        else:
            _require(self.domain is None, "domain belongs to source: sciknoweval")


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(Source):
    """Questions that must not be trained on; of SciKnowEval, the test part.

    Args:
        name: as the report has it.
        optional: go on without it where it cannot be read, and say so in the card (gated sets).
    """

    name: str
    dataset_split: str = "test"
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class DataRecipe(Source):
    """What to make, from what, and which rows are left out.

    Args:
        output_dir: folder to write; it must not be there yet.
        answer_column: text or a number; `a.b` is field b of column a.
        answer_format: `math` is compared as LaTeX, `choice` is a letter.
        answer_in: where the answer stands in its column: `plain` all of it, `boxed` in its last box, `hashes` after
            the last ####; `index`: it is the number of a choice, from 0.
        keep_unverifiable: keep rows without an answer that grading can compare; distillation needs none.
        language: `english` leaves rows of other languages out.
        tokenizer_name_or_path: Hub id or folder; counts `max_prompt_length`.
        max_prompt_length: in tokens of that tokenizer, in characters without one; of the prompt without a template.
        near_duplicate_similarity: estimated Jaccard similarity from which two prompts are the same problem; null: off.
        evaluation_sets: see `EvaluationSet`.
        contamination_ngram: words in a row that are compared.
        contamination_overlap: share of an evaluation question's n-grams from which a prompt holds that question.
    """

    output_dir: str
    answer_column: str = "answer"
    answer_format: Literal["math", "choice"] = "math"
    answer_in: Literal["plain", "boxed", "hashes", "index"] = "plain"
    keep_unverifiable: bool = False
    language: Literal["english"] | None = None
    tokenizer_name_or_path: str | None = None
    max_prompt_length: int | None = None
    near_duplicate_similarity: float | None = 0.8
    evaluation_sets: list[EvaluationSet] = field(default_factory=list)
    contamination_ngram: int = 8
    contamination_overlap: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.output_dir), "output_dir must name a folder")
        for name in ("near_duplicate_similarity", "contamination_overlap"):
            share = getattr(self, name)
            _require(share is None or 0 < share <= 1, f"{name} must lie in (0, 1], got {share}")
        _require(self.contamination_ngram >= 1, f"contamination_ngram must be at least 1: {self.contamination_ngram}")
        length = self.max_prompt_length
        _require(length is None or length >= 1, f"max_prompt_length must be at least 1, got {length}")
        _require(length is not None or not self.tokenizer_name_or_path, "tokenizer_name_or_path: no max_prompt_length")
        _require(
            self.answer_format == "choice" or (self.source == "columns" and not self.choices_column),
            "answer_format: questions with choices need answer_format: choice",
        )
        _require(self.answer_format == "choice" or self.answer_in != "index", "answer_in: index counts choices")
        names = [known.name for known in self.evaluation_sets]
        _require(len(set(names)) == len(names), f"evaluation_sets: a name stands twice: {', '.join(names)}")

    def plain(self) -> dict[str, Any]:
        """Every field but the output folder, as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "output_dir"}


_Built = TypeVar("_Built", bound=Source)


def load_data_recipe(path: str | Path, overrides: list[str] | None = None) -> DataRecipe:
    """Read, merge and check a data recipe.

    Args:
        path: the YAML file.
        overrides: command-line words, `--field value …`.

    Raises:
        RecipeError: anything wrong, in one line.
    """
    values, sources = read_fields(Path(path), overrides, get_type_hints(DataRecipe) | {"evaluation_sets": Any})
    if "evaluation_sets" in values:
        values["evaluation_sets"] = _evaluation_sets(values["evaluation_sets"], sources["evaluation_sets"])
    return _build(DataRecipe, values, str(path))


def _evaluation_sets(entries: Any, where: str) -> list[EvaluationSet]:
    try:
        entries = coerce(entries, list[dict])
    except TypeError:
        raise RecipeError(f"{where}: evaluation_sets must be a list of mappings, got {entries!r}") from None
    found = []
    for number, entry in enumerate(entries):
        place = f"{where}: evaluation_sets, entry {number + 1}"
        values, _ = check_fields(
            {str(name): (value, place) for name, value in entry.items()}, get_type_hints(EvaluationSet)
        )
        found.append(_build(EvaluationSet, values, place))
    return found


def _build(kind: type[_Built], values: dict[str, Any], place: str) -> _Built:
    for item in fields(kind):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise RecipeError(f"{place}: {item.name} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(f"{place}: {error}") from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
