"""Training sets: what is left out is counted and named, what is evaluated is not trained on, same input same bytes.

Slow where another process imports everything, as a person at a terminal does.
"""

import itertools
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from evaluation_records import MATH, write_records
from fake_hub import READER, WRITER, FakeHub
from huggingface_hub import HfApi

from evaluation.tasks import GROUPS
from vopd_recipes.data import preparation, sciknoweval, sources
from vopd_recipes.data.preparation import prepare, prepared
from vopd_recipes.data.push import check_access, push
from vopd_recipes.data.recipe import DataRecipe, EvaluationSet, load_data_recipe
from vopd_recipes.data.rows import Left
from vopd_recipes.grading import MathGrader
from vopd_recipes.prompts import read_rows
from vopd_recipes.recipe import DataConfig, RecipeError

ROOT = Path(__file__).parent.parent
NOUNS = [
    "apple", "river", "engine", "window", "garden", "letter", "bottle", "planet", "market", "violin", "ladder",
    "castle", "forest", "pencil", "magnet",
]  # fmt: skip


def sentence(generator: random.Random, length: int = 24) -> str:
    return " ".join(generator.choice(NOUNS) for _ in range(length))


def write_rows(path: Path, rows: list[Any]) -> str:
    """A file of the form that its name says; in JSON lines, bytes stay as they are."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return str(path)


def recipe_of(folder: Path, rows: list[Any], name: str = "rows.jsonl", **fields: Any) -> DataRecipe:
    return DataRecipe(dataset_name=write_rows(folder / name, rows), output_dir=str(folder / "made"), **fields)


def prompts_in(folder: Path) -> list[str]:
    return pq.read_table(folder / "made" / "train.parquet")["prompt"].to_pylist()


def removed_in(folder: Path) -> dict[int, tuple[str, str]]:
    """Row number → filter and reason."""
    lines = (folder / "made" / "removed.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["row"]: (line["filter"], line["why"]) for line in map(json.loads, lines)}


# What comes out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_every_form_gives_the_same_training_set_and_a_run_reads_it(tmp_path: Path, name: str) -> None:
    generator = random.Random(0)
    rows = [{"q": f"  {sentence(generator)} {n}\n", "gold": n, "other": [n]} for n in range(30)]
    summary = prepare(recipe_of(tmp_path, rows, name, prompt_column="q", answer_column="gold"))
    assert (summary["rows_read"], summary["rows_written"]) == (30, 30)
    assert set(summary["rows_removed"].values()) == {0}
    train, held_out = read_rows(DataConfig(dataset_name=str(tmp_path / "made"), answer_column="answer"), seed=0)
    assert held_out is None
    assert list(train["prompt"]) == [row["q"].strip() for row in rows]
    assert list(train["answer"]) == [str(n) for n in range(30)]


def test_answers_and_prompts_inside_columns(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"How many are {n} apples?"}],
            "reward_model": {"ground_truth": f"words \\boxed{{1}} then \\boxed{{{n}/7}}"},
        }
        for n in range(3)
    ] + [{"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "reward_model": {}}]
    recipe = recipe_of(tmp_path, rows, answer_column="reward_model.ground_truth", answer_in="boxed")
    assert prepare(recipe)["malformed"] == {"'prompt' is not text": 1}
    table = pq.read_table(tmp_path / "made" / "train.parquet")
    assert table.to_pylist() == [{"prompt": f"How many are {n} apples?", "answer": f"{n}/7"} for n in range(3)]


def test_answers_after_hashes(tmp_path: Path) -> None:
    rows = [{"prompt": "one two", "answer": "2 #### no\n#### 1,234"}, {"prompt": "three", "answer": "no hashes"}]
    summary = prepare(recipe_of(tmp_path, rows, answer_in="hashes"))
    assert pq.read_table(tmp_path / "made" / "train.parquet")["answer"].to_pylist() == ["1,234"]
    assert summary["rows_removed"]["unverifiable"] == 1


VERIFIABLE = r"""
12,\!000,\!085
\$115,000
2007 + \frac\pi 2
\text{Saturday}
\text{E}
\text{odd}
\text{1:03 PM}
10{,}000
\mbox{four}
\text{two lines}
\text{Softball, Kickball, Picnic}
\text{June 20}
\frac{9}{2}\text{ hours}.
\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}
(-\infty, \tfrac12] \cup [\tfrac34, \infty)
x \in [-2,7]
y^{\prime}+r y-r x(t)=0
""".strip().splitlines()
UNVERIFIABLE = ["no such thing", r"\frac{1}{", r"see the \text{figure}", "the set of all primes", r"\begin{array}"]


def test_which_answers_can_be_verified(tmp_path: Path) -> None:
    """A comparison of strings may decide; broken TeX and free prose cannot be verified."""
    rows = [{"prompt": f"What is number {n}?", "answer": answer} for n, answer in enumerate(VERIFIABLE + UNVERIFIABLE)]
    summary = prepare(recipe_of(tmp_path, rows))
    removed = [json.loads(line) for line in (tmp_path / "made" / "removed.jsonl").read_text().splitlines()]
    assert [rows[row["row"]]["answer"] for row in removed] == UNVERIFIABLE
    assert summary["rows_removed"]["unverifiable"] == len(UNVERIFIABLE) and summary["unverifiable_kept"] == 0


def test_rows_without_an_answer_may_be_kept(tmp_path: Path) -> None:
    answers: list[Any] = ["5", "no such thing", None, "", ["a list"]]
    rows: list[Any] = [{"prompt": f"What is number {n}?", "answer": answer} for n, answer in enumerate(answers)]
    rows += [{"prompt": "Prove it."}, {"prompt": None, "answer": "5"}, b"{\n"]
    summary = prepare(recipe_of(tmp_path, rows, keep_unverifiable=True, near_duplicate_similarity=None))
    made = pq.read_table(tmp_path / "made" / "train.parquet")
    assert made["answer"].to_pylist() == ["5", "no such thing", None, None, None, None]
    assert made["prompt"].to_pylist()[-1] == "Prove it."
    assert summary["rows_removed"] == dict.fromkeys(preparation.FILTERS, 0) | {"malformed": 2}
    assert summary["unverifiable_kept"] == 5
    assert "5 rows without an answer" in (tmp_path / "made" / "README.md").read_text(encoding="utf-8")


def test_numbers_are_written_out(tmp_path: Path) -> None:
    numbers = [1e16, 1e-05, 2.5, 7.0, -3, 10**20, 123456789.123]
    rows = [{"prompt": f"How many are {n} apples?", "answer": number} for n, number in enumerate(numbers)]
    prepare(recipe_of(tmp_path, rows))
    made = pq.read_table(tmp_path / "made" / "train.parquet")["answer"].to_pylist()
    assert made == ["10000000000000000", "0.00001", "2.5", "7.0", "-3", "1" + "0" * 20, "123456789.123"]
    with MathGrader() as grader:
        grades = grader.grade([rf"\boxed{{{n}}}" for n in ("10000000000000000", "0.00001", "5/2", "7")], made[:4])
    assert [grade.correct for grade in grades] == [True] * 4


def test_decimal_columns(tmp_path: Path) -> None:
    numbers = [Decimal("10000000000000000.00"), Decimal("-0.05"), None]
    table = pa.table({"prompt": ["a b", "c d", "e f"], "answer": pa.array(numbers, pa.decimal128(38, 2))})
    pq.write_table(table, tmp_path / "rows.parquet")
    prepare(DataRecipe(dataset_name=str(tmp_path / "rows.parquet"), output_dir=str(tmp_path / "made")))
    made = pq.read_table(tmp_path / "made" / "train.parquet")["answer"].to_pylist()
    assert made == ["10000000000000000.00", "-0.05"]


def test_choices_by_letter_and_by_index(tmp_path: Path) -> None:
    options = {"options": ["red", "blue", "green", "grey"]}
    letters = ["(B)", "B.", "b", "B)", "[b]", "B:", "E.", "BC", "2"]
    rows = [{"prompt": f"Which {noun}?", "answer": gold, **options} for noun, gold in zip(NOUNS, letters)]
    fields: dict[str, Any] = {
        "choices_column": "options",
        "answer_format": "choice",
        "near_duplicate_similarity": None,
    }
    prepare(recipe_of(tmp_path, rows, **fields))
    assert pq.read_table(tmp_path / "made" / "train.parquet")["answer"].to_pylist() == ["B"] * 6
    assert (
        removed_in(tmp_path)[8][1] == "the answer is none of the choices 'ABCD'; answer_in: index reads numbers from 0"
    )
    (tmp_path / "made").rename(tmp_path / "letters")
    numbers = [0, 1, "2", 3.0, "03", 4, -1, "B", 1.5]
    rows = [{"prompt": f"Which {noun}?", "answer": number, **options} for noun, number in zip(NOUNS, numbers)]
    summary = prepare(recipe_of(tmp_path, rows, **fields, answer_in="index"))
    assert pq.read_table(tmp_path / "made" / "train.parquet")["answer"].to_pylist() == ["A", "B", "C", "D", "D"]
    assert summary["rows_removed"]["unverifiable"] == 4


@pytest.mark.slow
def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Whatever Python's hash seed, which only a new process changes."""
    generator = random.Random(1)
    rows: list[Any] = [{"prompt": sentence(generator, 12), "answer": n % 7} for n in range(300)]
    rows += [{**row, "prompt": row["prompt"].upper()} for row in rows[::3]] + [{"prompt": "求所有整数"}, b"{\n"]
    generator.shuffle(rows)
    write_rows(tmp_path / "known.jsonl", [{"question": rows[5]["prompt"]}])
    known = EvaluationSet(name="known", dataset_name=str(tmp_path / "known.jsonl"), prompt_column="question")
    recipe = recipe_of(tmp_path, rows, language="english", evaluation_sets=[known])
    made = []
    for seed in ("1", "2"):
        code = (
            "import sys, json; from vopd_recipes.data.preparation import prepare;"
            "from vopd_recipes.data.recipe import load_data_recipe; prepare(load_data_recipe(sys.argv[1]))"
        )
        text = yaml.safe_dump(
            {**recipe.plain(), "output_dir": recipe.output_dir, "evaluation_sets": [vars(known)]}, sort_keys=False
        )
        (tmp_path / "recipe.yaml").write_text(text)
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "recipe.yaml")], check=True, env=environment)
        made.append({path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()})
        (tmp_path / "made").rename(tmp_path / f"made-{seed}")
    assert made[0] == made[1]
    assert made[0].keys() == {"train.parquet", "removed.jsonl", "summary.json", "README.md"}
    assert json.loads(made[0]["summary.json"])["rows_removed"]["near_duplicate"] > 50


def test_the_batch_size_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(2)
    rows = [{"prompt": sentence(generator, 10), "answer": n % 3} for n in range(200)]
    rows = generator.choices(rows, k=300) + [{**row, "prompt": row["prompt"].replace("e", "E")} for row in rows[:50]]
    found = []
    for size in (1, 7, 1024):
        monkeypatch.setattr(preparation, "_BATCH_ROWS", size)
        prepare(recipe_of(tmp_path, rows))
        found.append((prompts_in(tmp_path), sorted(removed_in(tmp_path).items())))
        (tmp_path / "made").rename(tmp_path / f"made-{size}")
    assert found[0] == found[1] == found[2]
    assert len(found[0][1]) > 100


@pytest.mark.parametrize(("limit", "value"), [("_GROUP_ROWS", 50), ("_GROUP_CHARACTERS", 5000)])
def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """In rows, and in characters: 50 rows of 100."""
    monkeypatch.setattr(preparation, limit, value)
    monkeypatch.setattr(preparation, "_BATCH_ROWS", 10)
    prepare(recipe_of(tmp_path, [{"prompt": f"{number:0100}", "answer": 1} for number in range(120)]))
    metadata = pq.ParquetFile(tmp_path / "made" / "train.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [50, 50, 20]


def test_the_card_and_the_summary_say_what_happened(tmp_path: Path) -> None:
    generator = random.Random(4)
    rows = [{"prompt": sentence(generator), "answer": 1} for _ in range(5)]
    evaluated = write_rows(tmp_path / "known.jsonl", [{"question": rows[2]["prompt"]}, {"question": None}])
    recipe = recipe_of(
        tmp_path, [*rows, rows[0]], language="english",
        evaluation_sets=[EvaluationSet(name="known", dataset_name=evaluated, prompt_column="question")],
    )  # fmt: skip
    summary = prepare(recipe)
    assert summary == json.loads((tmp_path / "made" / "summary.json").read_text(encoding="utf-8"))
    assert summary["rows_removed"] == dict.fromkeys(preparation.FILTERS, 0) | {"contaminated": 1, "duplicate": 1}
    origin = {"sha256": sha256(Path(evaluated).read_bytes()).hexdigest()}
    assert summary["evaluation_sets"] == {"known": {"questions": 1, "malformed": 1, "hits": 1, "source": origin}}
    assert summary["source"] == {"sha256": sha256(Path(recipe.dataset_name).read_bytes()).hexdigest()}
    assert removed_in(tmp_path) == {
        2: ("contaminated", "known, row 0: 100% of its 8-grams"),
        5: ("duplicate", "row 0"),
    }
    card = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "train.parquet"}]
    assert metadata["size_categories"] == ["n<1K"] and metadata["language"] == ["en"]
    assert (
        "4 of 6 rows" in card
        and f"| known | 1 | 1 | SHA-256 {origin['sha256']} |" in card
        and "| contaminated | 1 |" in card
    )
    assert str(tmp_path) not in card  # a folder of this machine is nobody else's business
    assert prepared(recipe) == summary
    assert prepared(DataRecipe(**{**vars(recipe), "language": None})) is None


def test_only_the_same_input_counts_as_made_before(tmp_path: Path) -> None:
    """Another file of that name, the same file with other content, an evaluation set that grew, a broken folder."""
    known = EvaluationSet(name="known", dataset_name=write_rows(tmp_path / "known.jsonl", [{"prompt": "Who is it?"}]))
    rows = [{"prompt": "a b", "answer": 1}]
    recipe = recipe_of(tmp_path, rows, evaluation_sets=[known])
    summary = prepare(recipe)
    assert prepared(recipe) == summary
    (tmp_path / "elsewhere").mkdir()
    for content, same in ((rows, True), ([{"prompt": "c d", "answer": 2}], False)):
        other = write_rows(tmp_path / "elsewhere" / "rows.jsonl", content)
        assert (prepared(replace(recipe, dataset_name=other)) == summary) == same
    write_rows(tmp_path / "rows.jsonl", [*rows, *rows])
    assert prepared(recipe) is None
    write_rows(tmp_path / "rows.jsonl", rows)
    write_rows(tmp_path / "known.jsonl", [{"prompt": "Who is it?"}, {"prompt": "Who are they?"}])
    assert prepared(recipe) is None
    write_rows(tmp_path / "known.jsonl", [{"prompt": "Who is it?"}])
    assert prepared(recipe) == summary
    (tmp_path / "rows.jsonl").unlink()
    assert prepared(recipe) is None
    write_rows(tmp_path / "rows.jsonl", rows)
    for name, content in (("train.parquet", "other"), ("removed.jsonl", "other")):
        path = tmp_path / "made" / name
        kept = path.read_bytes()
        path.write_text(content)
        assert prepared(recipe) is None
        path.write_bytes(kept)
    assert prepared(recipe) == summary
    for content in (
        "",
        '{"schema_version": 2',
        "[]",
        "3",
        '{"schema_version": 2}',
        json.dumps({**summary, "files": 1}),
    ):
        (tmp_path / "made" / "summary.json").write_text(content)
        assert prepared(recipe) is None


# Malformed rows ------------------------------------------------------------------------------------------------------

MALFORMED: list[tuple[Any, str]] = [
    ({"answer": "1"}, "no column 'prompt'"),
    ({"prompt": "a b"}, "no column 'answer'"),
    ({"prompt": None, "answer": "1"}, "'prompt' is null"),
    ({"prompt": "a b", "answer": None}, "'answer' is null"),
    ({"prompt": 7, "answer": "1"}, "'prompt' is not text"),
    ({"prompt": {"a": 1}, "answer": "1"}, "'prompt' is not text"),
    ({"prompt": "a b", "answer": ["1"]}, "'answer' is not text"),
    ({"prompt": "a b", "answer": True}, "'answer' is not text"),
    ({"prompt": "a b", "answer": float("nan")}, "'answer' is not a finite number"),
    ({"prompt": " \n", "answer": "1"}, "'prompt' is empty"),
    ({"prompt": "a \ud800 b", "answer": "1"}, "'prompt' is broken Unicode"),
    ({"prompt": "a b", "answer": "\udfff"}, "'answer' is broken Unicode"),
    ({"prompt": "caf\ufffd", "answer": "1"}, "'prompt' is broken Unicode"),
    ({"prompt": "x" * 10_000_000, "answer": "1"}, "'prompt' is over 1,000,000 characters"),
    ({"prompt": "a b", "answer": "9" * 10_000_000}, "'answer' is over 1,000,000 characters"),
    (b'{"prompt": "a b", "answer": \n', "not JSON"),
    (b'{"prompt": "\xff\xfe", "answer": "1"}\n', "not UTF-8"),
    (b"[" * 100_000 + b"\n", "not JSON"),
    (b'["prompt", "answer"]\n', "not an object"),
    (b"\x00\x01\x02\n", "not JSON"),
]


def test_malformed_rows_are_counted_named_and_skipped(tmp_path: Path) -> None:
    good = [{"prompt": f"How many {noun} ½ naïve 🙂?", "answer": "1"} for noun in NOUNS]
    rows = [row for pair in itertools.zip_longest(good, [row for row, _ in MALFORMED]) for row in pair if row]
    summary = prepare(recipe_of(tmp_path, rows))
    assert prompts_in(tmp_path) == [row["prompt"] for row in good]
    assert summary["rows_removed"]["malformed"] == len(MALFORMED)
    assert summary["malformed"] == {
        why: sum(other == why for _, other in MALFORMED) for why in sorted({why for _, why in MALFORMED})
    }
    removed = removed_in(tmp_path)
    assert [removed[number] for number in sorted(removed)] == [("malformed", why) for _, why in MALFORMED]
    assert [rows.index(row) for row, _ in MALFORMED[:8]] == sorted(removed)[:8]


def test_malformed_rows_of_a_json_array(tmp_path: Path) -> None:
    rows = [row for row, _ in MALFORMED if isinstance(row, dict)] + ["text", 3, None, {"prompt": "good", "answer": 2}]
    recipe = recipe_of(tmp_path, rows, "rows.json")
    assert prepare(recipe)["rows_removed"]["malformed"] == len(rows) - 1
    assert prompts_in(tmp_path) == ["good"]


def test_items_of_an_array_that_are_no_json(tmp_path: Path) -> None:
    """Counted by their place, whatever stands in them; the good ones around them are read."""
    broken = [
        '{"prompt": "a", "answer": 1,}', f'{{"prompt": "a", "answer": {"7" * 5000}}}', "[" * 5000 + "]" * 5000,
        '{"prompt": "a, ]} \\" [{", answer: 1}', "tru", "", '{"a": 1} {"b": 2}', "}",
        '{"prompt": "' + "x" * 2_500_000 + '" 1}',
    ]  # fmt: skip
    items = [json.dumps({"prompt": f"good {n}", "answer": n}) for n in range(len(broken) + 1)]
    text = ",\n".join(item for pair in itertools.zip_longest(items, broken) for item in pair if item is not None)
    (tmp_path / "rows.json").write_text(f"[{text}]")
    recipe = DataRecipe(dataset_name=str(tmp_path / "rows.json"), output_dir=str(tmp_path / "made"))
    summary = prepare(recipe)
    assert prompts_in(tmp_path) == [f"good {n}" for n in range(len(broken) + 1)]
    assert summary["malformed"] == {"not JSON": len(broken)}
    assert sorted(removed_in(tmp_path)) == [2 * n + 1 for n in range(len(broken))]


def test_malformed_rows_of_parquet(tmp_path: Path) -> None:
    texts = pa.array([b"a fine row", b"\xff\xfe", None, b"another"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": texts, "answer": ["1", "2", "3", "4"]}), tmp_path / "rows.parquet")
    summary = prepare(DataRecipe(dataset_name=str(tmp_path / "rows.parquet"), output_dir=str(tmp_path / "made")))
    assert summary["malformed"] == {"'prompt' is null": 1, "not UTF-8": 1}
    assert prompts_in(tmp_path) == ["a fine row", "another"]


def test_a_value_that_python_has_not(tmp_path: Path) -> None:
    """A date of the year 292,000: one row, not the file."""
    times = pa.array([0, 2**62, 1], pa.timestamp("us"))
    table = pa.table(
        {"prompt": pa.array([{"text": f"{n} a", "at": time} for n, time in enumerate(times)]), "answer": [1] * 3}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    recipe = DataRecipe(
        dataset_name=str(tmp_path / "rows.parquet"), output_dir=str(tmp_path / "made"), prompt_column="prompt.text"
    )
    assert prepare(recipe)["malformed"] == {"a value that cannot be read": 1}
    assert prompts_in(tmp_path) == ["0 a", "2 a"]


def test_a_value_that_python_has_not_on_the_hub() -> None:
    """As `datasets` decodes it."""
    times = pa.array([0, 2**62, 1], pa.timestamp("us"))
    found = datasets.Dataset(pa.table({"prompt": ["a", "b", "c"], "at": times}))
    rows = list(sources._decoded(found, range(0, 3)))
    assert rows[1] == Left("malformed", "a value that cannot be read")
    assert [rows[place]["prompt"] for place in (0, 2)] == ["a", "c"]


def test_an_array_longer_than_a_chunk(tmp_path: Path) -> None:
    """Items across the ends of chunks, one of them far longer than a chunk."""
    rows = [{"prompt": f"{n} " + "é" * (n * 997 % 5000), "answer": n} for n in range(700)]
    rows[300]["prompt"] = "y" * 3_000_000
    prepare(recipe_of(tmp_path, rows, "rows.json", near_duplicate_similarity=None))
    assert prompts_in(tmp_path) == [row["prompt"].strip() for row in rows if len(row["prompt"]) < 1_000_000]


# SciKnowEval ---------------------------------------------------------------------------------------------------------


def science_row(generator: random.Random, domain: str, level: str, kind: str = "mcq-4-choices") -> dict[str, Any]:
    """A row of the Hub's schema with a question of its own."""
    count = 2 if kind == "mcq-2-choices" else 4
    return {
        "question": f"Which {sentence(generator, 6)} is {generator.choice(NOUNS)} of compound {generator.random()}?",
        "choices": {"text": [sentence(generator, 3) for _ in range(count)], "label": list("ABCD"[:count])},
        "answer": "", "answerKey": generator.choice("ABCD"[:count]), "type": kind, "domain": domain,
        "details": {"level": level, "task": "t", "subtask": "s", "source": "own"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def science() -> list[dict[str, Any]]:
    generator = random.Random(9)
    kinds = ["mcq-4-choices"] * 3 + ["mcq-2-choices", "true_or_false"]
    rows = []
    for _ in range(2400):
        domain, level = generator.choice(sciknoweval.DOMAINS), generator.choice(["L2", "L3"])
        rows.append(science_row(generator, domain, level, generator.choice(kinds)))
    chemistry = [row for row in rows if row["domain"] == "Chemistry"]
    for row in chemistry[:60]:  # repeated with other spacing, case and order of choices
        order = generator.sample(range(len(row["choices"]["text"])), len(row["choices"]["text"]))
        texts = [row["choices"]["text"][place] for place in order]
        rows.append({**row, "question": "  " + row["question"].upper(), "choices": {**row["choices"], "text": texts}})
    return rows


def science_recipe(folder: Path, rows: list[Any], **fields: Any) -> DataRecipe:
    path = write_rows(folder / "sciknoweval.jsonl", rows)
    known = EvaluationSet(name="science", source="sciknoweval", dataset_name=path, domain="Chemistry")
    wanted: dict[str, Any] = {"domain": "Chemistry", "near_duplicate_similarity": None, "evaluation_sets": [known]}
    return DataRecipe(
        source="sciknoweval", dataset_name=path, output_dir=str(folder / "made"), answer_format="choice",
        **{**wanted, **fields},
    )  # fmt: skip


def test_the_science_test_part_is_not_trained_on(tmp_path: Path, science: list[dict[str, Any]]) -> None:
    summary = prepare(science_recipe(tmp_path, science))
    train, test = sciknoweval.split(science, "Chemistry")
    made = pq.read_table(tmp_path / "made" / "train.parquet").to_pylist()
    assert len(made) > 150 and len(test) > 20

    def spelled(text: str) -> frozenset[str]:  # the question and its choices, without letters, order, case and spacing
        return frozenset(" ".join(re.sub(r"^[A-D]\. ", "", line).split()).casefold() for line in text.splitlines())

    tested = {spelled(sciknoweval.question_text(row)) for row in test}
    assert not tested & {spelled(row["prompt"]) for row in made}
    assert {row["prompt"] for row in made} <= {sciknoweval.question_text(row) for row in train}
    assert all(row["answer"] in "ABCD" and f"\n{row['answer']}. " in row["prompt"] for row in made)

    chosen = [row for row in science if sciknoweval.belongs(row, "Chemistry", "L3")]
    repeats = len(chosen) - len(train) - len(test)
    assert repeats > 0
    by_the_split = [why for name, why in removed_in(tmp_path).values() if "which the split tests" in why]
    assert len(by_the_split) == repeats
    assert summary["rows_read"] == len(train) + repeats
    assert summary["rows_written"] == len(made) == summary["rows_read"] - sum(summary["rows_removed"].values())
    assert summary["evaluation_sets"]["science"]["questions"] == len(test)


def test_a_level_of_science(tmp_path: Path, science: list[dict[str, Any]]) -> None:
    summary = prepare(science_recipe(tmp_path, science, level="L2", evaluation_sets=[]))
    train, test = sciknoweval.split(science, "Chemistry", "L2")
    assert {*prompts_in(tmp_path)} == {sciknoweval.question_text(row) for row in train}
    assert not {*prompts_in(tmp_path)} & {sciknoweval.question_text(row) for row in test}
    assert summary["recipe"]["level"] == "L2"
    with pytest.raises(ValueError, match="no level 'L9'"):
        sciknoweval.split(science, "Chemistry", "L9")


def test_malformed_science_rows_change_no_split(tmp_path: Path, science: list[dict[str, Any]]) -> None:
    broken: list[Any] = [
        b"{\n",
        {"question": "?"},
        {**science[0], "domain": "Chemistry", "details": None},
        {**science_row(random.Random(0), "Chemistry", "L3"), "question": 3},
    ]
    summary = prepare(science_recipe(tmp_path, [*broken, *science]))
    assert summary["rows_removed"]["malformed"] == len(broken)
    train, _ = sciknoweval.split(science, "Chemistry")
    assert {*prompts_in(tmp_path)} == {sciknoweval.question_text(row) for row in train}


# Refusals ------------------------------------------------------------------------------------------------------------


def refusal(recipe: DataRecipe) -> str:
    with pytest.raises(RecipeError) as caught:
        prepare(recipe)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert not Path(recipe.output_dir).exists()
    return message


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    def of(name: str, **fields: Any) -> str:
        return refusal(DataRecipe(dataset_name=name, output_dir=str(tmp_path / "made"), **fields))

    assert of("nowhere.jsonl") == "dataset_name: nowhere.jsonl: no such file, and not a Hub id"
    assert of("some..one/a--b") == "dataset_name: some..one/a--b: no such file, and not a Hub id"  # nor can be one
    assert of("./nowhere/at/all") == "dataset_name: ./nowhere/at/all: no such file, and not a Hub id"
    (tmp_path / "rows.csv").write_text("prompt\n")
    assert "expected a .jsonl, .json or .parquet file" in of(str(tmp_path / "rows.csv"))
    assert of("someone/nothing") == (
        "someone/nothing: the Hub cannot be reached; check the network, or name a local file"
    )
    (tmp_path / "empty.jsonl").touch()
    assert of(str(tmp_path / "empty.jsonl")).endswith("has no rows")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    assert "cannot read" in of(str(tmp_path / "broken.parquet"))
    (tmp_path / "broken.json").write_text('[{"prompt": "a", "answer": 1}, {"prompt": "b", "ans')
    assert of(str(tmp_path / "broken.json")).endswith("item 1 of the array is not JSON")
    (tmp_path / "early.json").write_text('[{"prompt": "a", "answer": 1}, {"prompt": "b"]}, 2], {"prompt": "c"}]')
    assert of(str(tmp_path / "early.json")).endswith("the array ends at item 2, and something follows")
    good = write_rows(tmp_path / "good.jsonl", [{"prompt": "a", "answer": 1}])
    assert "cannot load ./no/tokenizer" in of(good, max_prompt_length=9, tokenizer_name_or_path="./no/tokenizer")


def test_columns_that_no_row_has(tmp_path: Path) -> None:
    rows = [{"prompt": "a b", "gold": 1}] * 3
    assert refusal(recipe_of(tmp_path, rows)).endswith("every one of its 3 rows is malformed: no column 'answer'")
    message = refusal(recipe_of(tmp_path, rows, "rows.parquet", prompt_column="promt", answer_column="gold"))
    assert message.endswith("has no column 'promt'; it has prompt, gold; did you mean 'prompt'?")


def test_nothing_is_left_and_folders_in_the_way(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "a b", "answer": "no such thing"}, b"{\n"]
    assert refusal(recipe_of(tmp_path, rows)).endswith("none of 2 rows is left: 1 malformed, 1 unverifiable")
    recipe = recipe_of(tmp_path, [{"prompt": "a", "answer": 1}])
    prepare(recipe)
    with pytest.raises(RecipeError, match="is there already"):
        prepare(recipe)


def test_a_place_that_takes_no_file_is_seen_before_the_hub_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(DataRecipe(dataset_name="someone/nothing", output_dir=str(tmp_path / "file" / "made")))
    assert message.startswith(f"output_dir: nothing can be written to {tmp_path / 'file'} (File exists)")


def test_evaluation_sets_that_cannot_be_read(tmp_path: Path) -> None:
    def of(**fields: Any) -> DataRecipe:
        known = EvaluationSet(name="known", **fields)
        return recipe_of(tmp_path, [{"prompt": "a", "answer": 1}], evaluation_sets=[known])

    path = write_rows(tmp_path / "known.jsonl", [{"problem": "What is it?"}])
    assert refusal(of(dataset_name="nowhere.jsonl")).startswith("evaluation_sets, known: dataset_name: nowhere.jsonl")
    assert "no question in" in refusal(of(dataset_name=path)) and "no column 'prompt'" in refusal(
        of(dataset_name=path)
    )
    assert "the Hub cannot be reached" in refusal(of(dataset_name="someone/nothing"))
    assert "no such file" in refusal(of(dataset_name="nowhere.jsonl", optional=True))  # a mistake is not an absence
    summary = prepare(of(dataset_name="someone/nothing", optional=True))
    assert "the Hub cannot be reached" in summary["evaluation_sets"]["known"]["not_checked"]
    assert "not checked: someone/nothing" in (tmp_path / "made" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"promt_column": "a"}, "recipe.yaml:3: unknown field 'promt_column'; did you mean 'prompt_column'?"),
        (
            {"answer_in": "somewhere"},
            "recipe.yaml:3: answer_in must be one of plain, boxed, hashes, index, got 'somewhere'",
        ),
        ({"answer_in": "index"}, "recipe.yaml: answer_in: index counts choices"),
        ({"max_prompt_length": "long"}, "max_prompt_length must be a whole number or null, got 'long'"),
        ({"near_duplicate_similarity": 1.5}, "near_duplicate_similarity must lie in (0, 1], got 1.5"),
        (
            {"source": "sciknoweval", "domain": "Alchemy"},
            "domain must be one of Biology, Chemistry, Material, Physics",
        ),
        ({"domain": "Chemistry"}, "domain belongs to source: sciknoweval"),
        ({"source": "sciknoweval", "domain": "Physics"}, "questions with choices need answer_format: choice"),
        ({"tokenizer_name_or_path": "x"}, "no max_prompt_length"),
        ({"evaluation_sets": {"a": 1}}, "evaluation_sets must be a list of mappings"),
        ({"evaluation_sets": [{"name": "a"}]}, "evaluation_sets, entry 1: dataset_name is missing"),
        ({"evaluation_sets": [{"name": "a", "dataset_name": "b", "colum": 1}]}, "entry 1: unknown field 'colum'"),
        ({"evaluation_sets": [{"name": "a", "dataset_name": "b"}] * 2}, "a name stands twice: a, a"),
        ({"dataset_name": None}, "dataset_name must be text, got None"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"dataset_name": "a/b", "output_dir": "c", **fields}, sort_keys=False))
    with pytest.raises(RecipeError) as caught:
        load_data_recipe(path)
    assert says in str(caught.value)


def test_a_key_that_stands_twice_in_an_evaluation_set(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: a/b\noutput_dir: c\nevaluation_sets:\n- name: d\n  dataset_name: e\n  name: f\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:6: name stands twice$"):
        load_data_recipe(path)


def test_every_data_recipe_loads_and_makes_what_runs_read() -> None:
    made = {}
    for path in sorted((ROOT / "recipes" / "data").glob("*.yaml")):
        recipe = load_data_recipe(path)
        assert recipe.output_dir == f"data/{path.stem}" and recipe.evaluation_sets
        made[recipe.output_dir] = recipe
    assert len(made) == 6
    named = set()
    for path in (ROOT / "recipes").glob("qwen*/vopd.yaml"):
        named.add(yaml.safe_load(path.read_text())["dataset_name"])
    assert named and named <= made.keys()
    assert load_data_recipe(ROOT / "recipes/data/gsm8k.yaml", ["--max_prompt_length", "7"]).max_prompt_length == 7


def test_the_recipes_know_the_schema_of_what_is_evaluated(tmp_path: Path) -> None:
    """Each evaluation set, read from a local file in its Hub schema, which the evaluation reads as well."""
    records = write_records(tmp_path / "records")
    files = {path.stem: str(path) for path in records.iterdir()}
    found = {}
    for name in ("dapo-math-17k", *(f"sciknoweval-{domain.lower()}" for domain in sciknoweval.DOMAINS)):
        recipe = load_data_recipe(ROOT / f"recipes/data/{name}.yaml")
        known = [replace(one, dataset_name=files[one.name.split("_")[0]]) for one in recipe.evaluation_sets]
        fields = {"output_dir": str(tmp_path / name), "evaluation_sets": known}
        if recipe.source == "sciknoweval":
            fields["dataset_name"] = files["sciknoweval"]
        else:
            rows = [{"prompt": f"How many {noun}s?", "solution": 1} for noun in NOUNS]
            fields["dataset_name"] = write_rows(
                tmp_path / "rows.jsonl", [*rows, {"prompt": MATH[2][0], "solution": 5}]
            )
        summary = prepare(replace(recipe, **fields))
        found[name] = {one: known["questions"] for one, known in summary["evaluation_sets"].items()}
        if recipe.source == "columns":
            assert summary["rows_removed"]["contaminated"] == 1
    assert found["dapo-math-17k"] == dict.fromkeys(GROUPS["math"], 3)
    domains = ("chemistry", "biology", "material", "physics")
    for domain in domains:
        assert found[f"sciknoweval-{domain}"] == {f"sciknoweval_{other}": 4 for other in domains} | {"gpqa": 6}


# The command and the Hub ---------------------------------------------------------------------------------------------


def command(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), *map(str, words)]
    return subprocess.run(program, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """Four processes that import everything: the words that a person reads and the exit status."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a b", "answer": 1}] * 2)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"dataset_name": rows, "output_dir": str(tmp_path / "made")}))
    refused = command(path, "--langage", "english")
    assert (refused.returncode, refused.stderr) == (
        2, "error: --langage: unknown field 'langage'; did you mean 'language'?\n",
    )  # fmt: skip
    done = command(path)
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path / 'made'}: 1 of 2 rows; left out: 1 duplicate\n"
    again = command(path)
    assert again.returncode == 0 and "made by this recipe before" in again.stderr and again.stdout == done.stdout
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "c d", "answer": 1}])
    other = command(path)
    assert (other.returncode, other.stderr) == (
        2, f"error: output_dir: {tmp_path / 'made'} is there already, from another recipe or other input; "
        "delete it or name another\n",
    )  # fmt: skip


def test_a_training_set_is_pushed_private(tmp_path: Path, hub: FakeHub) -> None:
    api = HfApi(endpoint=hub.url, token=WRITER)
    prepare(recipe_of(tmp_path, [{"prompt": "a b", "answer": 1}]))
    check_access(api, "org/set")
    assert hub.repositories["dataset", "org/set"].private
    push(api, tmp_path / "made", "org/set")
    files = hub.files("org/set", "main", "dataset")
    for path in (tmp_path / "made").iterdir():
        assert files[path.name] == path.read_bytes()


def test_pushes_that_are_refused(tmp_path: Path, hub: FakeHub) -> None:
    api = HfApi(endpoint=hub.url, token=WRITER)
    hub.create("dataset", "org/public", private=False)
    cases = [
        (api, "org/public", "org/public is public"),
        (api, "no name", "'no name' is not org/name"),
        (api, "else/set", "else/set cannot be written (HTTP 403"),
        (HfApi(endpoint=hub.url, token=READER), "org/set", "org/set cannot be written (HTTP 403"),
        (HfApi(endpoint="http://127.0.0.1:9", token=WRITER), "org/set", "cannot be written (ConnectError"),
    ]
    for client, repo_id, says in cases:
        with pytest.raises(RecipeError) as caught:
            check_access(client, repo_id)
        assert says in str(caught.value)
    hub.fail("POST .*/commit/", 100, status=500)
    prepare(recipe_of(tmp_path, [{"prompt": "a b", "answer": 1}]))
    check_access(api, "org/set")
    with pytest.raises(RecipeError, match="is whole, the same command uploads it again"):
        push(api, tmp_path / "made", "org/set")


@pytest.mark.slow
def test_from_the_hub_and_back(tmp_path: Path, hub: FakeHub) -> None:
    """Processes that read a set from the Hub, a gated one too: the only proof of what `datasets` does there."""
    rows = [
        {"question": f"How many {noun} are there in {n} boxes?", "answer": f"#### {n}"} for n, noun in enumerate(NOUNS)
    ]
    source = hub.create("dataset", "org/source", private=False)
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    files = {"train.jsonl": hub.store(b"".join(lines)), "test.jsonl": hub.store(lines[4])}
    source.commit("main", files, "rows")
    path = tmp_path / "recipe.yaml"
    fields = {
        "dataset_name": "org/source", "output_dir": str(tmp_path / "made"), "prompt_column": "question",
        "answer_in": "hashes",
        "evaluation_sets": [{"name": "test", "dataset_name": "org/source", "prompt_column": "question"}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(fields))
    environment = {"HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    done = command(path, "--push", "org/made", **environment)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'made'}: 14 of 15 rows; left out: 1 contaminated" in done.stdout
    assert hub.repositories["dataset", "org/made"].private
    made = (tmp_path / "made" / "train.parquet").read_bytes()
    assert hub.files("org/made", "main", "dataset")["train.parquet"] == made

    first = source.branches["main"]
    summary = json.loads((tmp_path / "made" / "summary.json").read_text(encoding="utf-8"))
    assert summary["source"] == summary["evaluation_sets"]["test"]["source"] == {"revision": first}
    assert f"Read at commit {first}." in (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    source.commit("main", {**files, "train.jsonl": hub.store(b"".join(lines[:9]))}, "fewer rows")
    moved = command(path, **environment)
    assert moved.returncode == 2 and "is there already, from another recipe or other input" in moved.stderr
    at_first = command(path, "--dataset_revision", first, "--output_dir", tmp_path / "first", **environment)
    assert f"{tmp_path / 'first'}: 14 of 15 rows" in at_first.stdout, at_first.stderr

    mixed = [*lines[:6], b'{"question": {"a": [1]}, "answer": 7}\n', b'{"question": "d e", "answer": 3}\n', b"{\n"]
    hub.create("dataset", "org/mixed", private=False).commit("main", {"train.jsonl": hub.store(b"".join(mixed))}, "x")
    of_mixed = ("--dataset_name", "org/mixed", "--output_dir", tmp_path / "mixed", "--answer_in", "plain")
    done = command(path, *of_mixed, **environment)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "mixed" / "summary.json").read_text(encoding="utf-8"))
    assert said["malformed"] == {"'question' is not text": 1, "not JSON": 1}
    mixed.pop()  # now `datasets` reads it, with its own encoding of a column of two types
    hub.repositories["dataset", "org/mixed"].commit("main", {"train.jsonl": hub.store(b"".join(mixed))}, "y")
    done = command(path, *of_mixed[:2], "--output_dir", tmp_path / "types", *of_mixed[4:], **environment)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "types" / "summary.json").read_text(encoding="utf-8"))
    assert said["malformed"] == {"'question' is not text": 1}
    assert pq.read_table(tmp_path / "types" / "train.parquet")["prompt"].to_pylist() == ["d e"]

    hub.create("dataset", "org/gated", private=False)
    hub.fail("org/gated", 100, status=403, headers={"X-Error-Code": "GatedRepo"})
    refused = command(path, "--dataset_name", "org/gated", "--output_dir", tmp_path / "other", **environment)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(
        "error: org/gated is gated, and this machine has no access: accept"
    )
    assert not (tmp_path / "other").exists()


LONG_ROWS = """
import json, re, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from vopd_recipes.data.preparation import prepare
from vopd_recipes.data.recipe import DataRecipe
prompt, answer, count, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
rows = ({"prompt": f"{n} " + "x" * prompt, "answer": str(n) + "7" * answer} for n in range(count))
if path.suffix == ".parquet":
    with pq.ParquetWriter(path, pa.schema([("prompt", pa.string()), ("answer", pa.string())])) as table:
        for row in rows:
            table.write_table(pa.Table.from_pylist([row]))
else:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\\n" for row in rows)
        file.write('{"prompt": "short", "answer": "1"}')
summary = prepare(DataRecipe(dataset_name=str(path), output_dir=str(path.parent / f"made-{path.name}"),
                             near_duplicate_similarity=None))
print(json.dumps(summary["rows_removed"]))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_a_hub_that_was_away_for_an_optional_set_takes_the_push(tmp_path: Path, hub: FakeHub) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a b", "answer": 1}])
    away = {"name": "away", "dataset_name": "org/away", "optional": True}
    fields = {"dataset_name": rows, "output_dir": str(tmp_path / "made"), "evaluation_sets": [away]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    hub.create("dataset", "org/away", private=False)
    hub.fail("org/away", 100, status=0)
    done = command(tmp_path / "recipe.yaml", "--push", "org/made", HF_DATASETS_CACHE=str(tmp_path / "datasets"))
    assert done.returncode == 0, done.stderr
    assert "not compared with away: org/away: the Hub cannot be reached" in done.stderr
    assert "train.parquet" in hub.files("org/made", "main", "dataset")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prompt", "answer", "removed"),
    [
        ("answers.jsonl", 0, 900_000, {"unverifiable": 600}),
        ("prompts.parquet", 990_000, 1, {}),
    ],
)
def test_long_rows_are_not_held(tmp_path: Path, name: str, prompt: int, answer: int, removed: dict[str, int]) -> None:
    """600 rows, half a gigabyte of text: the whole process stays under 0.45 GB."""
    words = [sys.executable, "-c", LONG_ROWS, prompt, answer, 600, tmp_path / name]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
    said, peak = done.stdout.splitlines()
    assert {filter_: count for filter_, count in json.loads(said).items() if count} == removed
    assert int(peak) < 450_000


@pytest.mark.slow
def test_memory_is_flat() -> None:
    """Half a minute: from 5,000 to 40,000 rows (13 MB of them) the peak grows by less than 1.7 KB a row."""
    peaks = []
    for count in (5_000, 40_000):
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "benchmark_data.py"), "--rows", str(count)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(float(re.search(r"peak ([\d.]+) GB", done.stdout)[1]))
    assert peaks[1] < 0.8
    assert peaks[1] - peaks[0] < 0.06


def test_the_example_reads_a_file_without_the_hub(tmp_path: Path) -> None:
    """Which is offline here; what it was not compared with stands in the card."""
    rows = [{"question": f"Anna has {n} {noun}s and buys two. How many has she?", "answer": f"She has\n#### {n + 2}"}
            for n, noun in enumerate(NOUNS, 3)]  # fmt: skip
    flags = ["--dataset_name", write_rows(tmp_path / "mine.jsonl", rows), "--output_dir", str(tmp_path / "made")]
    summary = prepare(load_data_recipe(ROOT / "recipes/data/gsm8k.yaml", flags))
    assert summary["rows_written"] == len(rows)
    assert "not checked: openai/gsm8k" in (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
