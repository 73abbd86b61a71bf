"""Whose questions, in which words: the paper's prompts from records as the Hub has them."""

import json
import random
from collections import Counter
from pathlib import Path

import huggingface_hub.constants
import pytest
from datasets import Dataset, DatasetInfo
from evaluation_records import ON_THE_HUB, chemistry, gpqa, named, write_records

from evaluation import run, sources
from evaluation.protocol import Drawing, read_protocol
from evaluation.tasks import GROUPS, TASKS, task_names
from vopd_recipes.data import sciknoweval
from vopd_recipes.data.recipe import DataRecipe, EvaluationSet
from vopd_recipes.data.rows import Left
from vopd_recipes.data.sources import numbered_rows
from vopd_recipes.recipe import RecipeError


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.mark.parametrize("name", GROUPS["math"])
def test_mathematics(name: str, records: Path) -> None:
    task = TASKS[name]
    questions = task.read(records)[0]
    assert len(questions) == 3
    assert task.prompt(questions[0]) == (
        "What is $2+3$?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert questions[0].gold == {"aime25": "17", "amc23": "27.0"}.get(name, "5")
    assert [question.letters for question in questions] == [""] * 3


def test_gpqa(records: Path) -> None:
    first = TASKS["gpqa"].read(records)[0][0]
    text, *choices = first.text.split("\n\n")
    assert text == gpqa(3)["Question"]
    lines = choices[0].split("\n")
    assert sorted(line[3:] for line in lines) == ["12 N", "3 N", "5 N", "6 N"]
    assert [line[:3] for line in lines] == ["A. ", "B. ", "C. ", "D. "]
    assert lines["ABCD".index(first.gold)].endswith("6 N")
    assert (
        TASKS["gpqa"]
        .prompt(first)
        .endswith(
            '\n\nReturn only one JSON object with the key "answer". The value must be exactly one choice letter, for '
            'example: {"answer": "C"}.'
        )
    )


def test_gpqa_order_is_the_questions_own(tmp_path: Path) -> None:
    def golds(folder: Path, numbers: list[int]) -> dict[str, str]:
        folder.mkdir()
        (folder / "gpqa.jsonl").write_text("".join(json.dumps(gpqa(number)) + "\n" for number in numbers))
        return {question.text: question.gold for question in TASKS["gpqa"].read(folder)[0]}

    everything = golds(tmp_path / "all", list(range(5, 405)))
    random.seed(3)  # a global random state decides nothing
    some = golds(tmp_path / "some", [300, 7, 42])
    assert some.items() <= everything.items() and len(some) == 3
    assert all(60 < count < 140 for count in Counter(everything.values()).values())  # 100 each, 4.6 deviations


def test_sciknoweval_is_split_as_documented(records: Path) -> None:
    rows = [json.loads(line) for line in (records / "sciknoweval.jsonl").read_text().splitlines()]
    for domain in sciknoweval.DOMAINS:
        train, test = sciknoweval.split(rows, domain)
        asked = {question.text for question in TASKS[f"sciknoweval_{domain.lower()}"].read(records)[0]}
        assert len(asked) == len(test) == 4 and len(train) == 36
        assert not asked & {sciknoweval.question_text(row) for row in train}
        assert {row["details"]["level"] for row in train + test} == {"L3"}


def test_sciknoweval_counts_and_order_are_the_communitys() -> None:
    rows = [chemistry(number) for number in range(2100)]
    train, test = sciknoweval.split(rows, "Chemistry")
    assert (len(train), len(test)) == (1890, 210)
    # train_test_split(0.1, seed=42) permutes by numpy's default_rng(42) and takes the test part first
    import numpy

    order = numpy.random.default_rng(42).permutation(2100)
    assert [row["choices"]["text"][0] for row in test] == [str(number) for number in order[:210]]


def test_sciknoweval_trains_on_no_test_question() -> None:
    rows = [chemistry(number % 50) for number in range(500)]  # every question ten times, in other spacing
    for index, row in enumerate(rows):
        row["question"] = row["question"].replace(" ", " " * (1 + index % 3))
    train, test = sciknoweval.split(rows, "Chemistry")
    assert not {sciknoweval.identity(row) for row in train} & {sciknoweval.identity(row) for row in test}


def test_malformed_rows_deal_the_same_questions_to_training_and_evaluation(tmp_path: Path) -> None:
    """Rows that are no question, in the file that both read: not one question that was trained on is asked."""
    rows: list[object] = [chemistry(number) for number in range(400)]
    bad = [
        {**chemistry(1000), "question": "\ud800"},
        {**chemistry(1001), "choices": None},
        {"question": "?"},
        [1],
        None,
    ]
    for place, row in enumerate(bad):
        rows.insert(70 * place + 5, row)
    path = tmp_path / "sciknoweval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {question.text for question in TASKS["sciknoweval_chemistry"].read(tmp_path)[0]}
    source = DataRecipe(
        source="sciknoweval", dataset_name=str(path), output_dir="x", answer_format="choice", domain="Chemistry"
    )
    read = [row for _, row in numbered_rows(source)]
    trained_on = {sciknoweval.question_text(row) for row in read if not isinstance(row, Left)}
    assert (len(asked), len(trained_on), len(read)) == (40, 360, 365)
    assert not asked & trained_on
    known = EvaluationSet(name="s", source="sciknoweval", dataset_name=str(path), domain="Chemistry")
    tested = {sciknoweval.question_text(row) for _, row in numbered_rows(known) if not isinstance(row, Left)}
    assert tested == asked


def test_a_science_question_is_the_same_in_other_typesetting() -> None:
    row = {
        "question": "What is the mass of $H_2O$ at 20 °C?",
        "choices": {"text": ["18 g", "$\\frac{1}{2}$ g", "2,000 g"]},
    }
    same = {
        "question": "what is the mass of H2O at $20 ^\\circ C$ ?",
        "choices": {"text": ["2000 g", "18 g.", "\\frac12 g"]},
    }
    other = {**same, "choices": {"text": ["2000 g", "19 g", "\\frac12 g"]}}
    assert sciknoweval.identity(row) == sciknoweval.identity(same) != sciknoweval.identity(other)


def test_built_in_problems_are_those_held_out_in_training() -> None:
    from vopd_recipes.tiny import problems as arithmetic

    trained_on, held_out = arithmetic.split("chain", train=1000, test=256)
    asked = [question.text for question in TASKS["arithmetic"].read(None)[0]]
    assert asked == [problem.prompt for problem in held_out]
    assert not set(asked) & {problem.prompt for problem in trained_on}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("minerva.jsonl", '{"question": "?"}\n', "row 0 is not a question of Minerva Math: KeyError: 'answer'"),
        ("minerva.jsonl", '{"question": " ", "answer": "1"}\n', "row 0 of Minerva Math has an empty question"),
        ("minerva.jsonl", "[1]\n", "row 0 is not a question of Minerva Math: TypeError"),
        ("minerva.jsonl", '{"question": null, "answer": "1"}\n', "Minerva Math: ValueError: its 'question' is null"),
        ("minerva.jsonl", '{"question": "?", "answer": null}\n', "Minerva Math: ValueError: its 'answer' is null"),
        ("minerva.jsonl", "", "it has no rows"),
        ("minerva.jsonl", "{", "minerva.jsonl cannot be read"),
        ("minerva.parquet", "x", "minerva.parquet cannot be read"),
        ("other.jsonl", "", "holds no minerva.jsonl, minerva.json or minerva.parquet"),
    ],
)
def test_records_that_are_none(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(RecipeError, match=".") as refused:
        TASKS["minerva"].read(tmp_path)[0]
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": "E"}, "SciKnowEval Chemistry L3: the answer 'E' is none of its choices A, B, C, D"),
        (
            {"answerKey": "AB"},
            "L3: the answer 'AB' is none of its choices A, B, C, D; correct it in a local file",
        ),
        (
            {"choices": {"text": ["1", "2", "3", "4"], "label": []}},
            "SciKnowEval Chemistry L3: the answer 'A' is none of its choices (it has no labels)",
        ),
        ({"answerKey": None}, "SciKnowEval Chemistry L3: AttributeError"),
        ({"details": None}, "two or more make a split; malformed rows: 20 (a column of the wrong type)"),
        ({"choices": None}, "two or more make a split; malformed rows: 20 (a column of the wrong type)"),
        ({"details": {}}, "two or more make a split; malformed rows: 20 (no column 'level')"),
    ],
)
def test_science_records_that_are_none(tmp_path: Path, change: dict, message: str) -> None:
    rows = [{**chemistry(number), **change} for number in range(20)]
    (tmp_path / "sciknoweval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecipeError) as refused:
        TASKS["sciknoweval_chemistry"].read(tmp_path)
    assert message in str(refused.value)


def test_where_questions_are_from(records: Path) -> None:
    names = ("math500", "amc23", "sciknoweval_physics", "arithmetic")
    assert [TASKS[name].read(records)[1]["source"] for name in names] == [
        *("math500.json", "amc23.parquet", "sciknoweval.jsonl", "built in")
    ]
    commit = "0123456789abcdef0123456789abcdef01234567"
    info = DatasetInfo(download_checksums={f"hf://datasets/org/name@{commit}/data/test.parquet": {}})
    assert sources._commit(Dataset.from_dict({"a": [1]}, info=info)) == f"@{commit}"
    assert sources._commit(Dataset.from_dict({"a": [1]})) == ""


@pytest.mark.parametrize("name", [*GROUPS["math"], *GROUPS["science"]])
def test_results_name_the_rows_that_were_read(name: str, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Title, data set, configuration and split: from the call that fetches them, or of the local file in its place."""
    asked = []
    local = TASKS[name].read(records)[1]
    file = "sciknoweval" if "sciknoweval" in name else name
    part = ON_THE_HUB[name][2] if file == "sciknoweval" else None
    assert (local["dataset_name"], local["dataset_config"], local["dataset_split"]) == (local["source"], part, None)
    assert Path(str(local["dataset_name"])).stem == file and local["title"] == ON_THE_HUB[name][0]

    def load_dataset(id: str, config: str | None, split: str) -> Dataset:
        asked.append((id, config, split))
        return Dataset.from_list(sources._from_folder(records, file).rows)

    sources._read.cache_clear()
    monkeypatch.setattr(sources.datasets, "load_dataset", load_dataset)
    about = TASKS[name].read(None)[1]
    sources._read.cache_clear()
    _, dataset, config, split = ON_THE_HUB[name]
    assert about == named(name) | {"source": dataset}
    assert asked == [(dataset, None if part else config, split)]


def test_a_hub_that_does_not_answer_is_asked_again_once_the_questions_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the model would be an old one from the cache, and a push would fail."""
    asked_offline = []

    def load_dataset(id: str, config: str | None, split: str) -> Dataset:
        asked_offline.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        raise ConnectionError("timed out")

    monkeypatch.setattr(sources.datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    failures: dict[str, str] = {}
    assert run._read(["amc23", "arithmetic", "aime24"], None, failures).keys() == {"arithmetic"}
    assert asked_offline == [False, True] and failures.keys() == {"amc23", "aime24"}
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_task_names() -> None:
    assert task_names("science, aime24,gpqa") == ([*GROUPS["science"], "aime24"], {})
    found, unknown = task_names("aime42,math500")
    assert found == ["math500"] and "did you mean 'aime2" in unknown["aime42"]


def test_protocols_are_the_papers() -> None:
    paper, released, qwen = (read_protocol(name) for name in ("paper", "released", "qwen"))
    assert paper.drawing("math", None) == paper.drawing("choice", None) == Drawing(0.6, 0.9, 0, 4096)
    assert [paper.samples_of(task) for task in ("math500", "minerva", "amc23", "aime24", "aime25")] == [
        8,
        8,
        32,
        32,
        32,
    ]
    assert released.drawing("math", None) == Drawing(0.6, 1.0, 0, 4096)
    assert released.drawing("choice", None) == Drawing(0.6, 0.95, 20, 4096)
    assert released.samples_of("aime24") == 8
    assert not paper.chat_template and qwen.chat_template and not qwen.thinking
    assert qwen.drawing("math", None) == qwen.drawing("choice", None) == Drawing(0.7, 0.8, 20, 32768)
    thinking = read_protocol("qwen", thinking=True)
    assert thinking.name == "qwen+thinking=true"
    assert thinking.drawing("math", None) == thinking.drawing("choice", None) == Drawing(0.6, 0.95, 20, 32768)
    assert read_protocol("olmo").drawing("math", None) == Drawing(0.6, 0.95, 0, 32768)
    assert paper.drawing("math", 64).max_new_tokens == 64


def test_a_changed_protocol_has_another_name() -> None:
    changed = read_protocol("paper", samples=2, max_new_tokens=99, chat_template=True)
    assert changed.name == "paper+chat_template=true+max_new_tokens=99"
    assert changed.samples_of("aime24") == 2 and changed.drawing("math", None).max_new_tokens == 99
    assert read_protocol("paper", max_new_tokens=4096, thinking=False).name == "paper"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("papers", {}, "no protocol 'papers'; did you mean 'paper'?"),
        ("paper", {"samples": 0}, "SAMPLES: 0 is not"),
        ("paper", {"max_new_tokens": -1}, "MAX_NEW_TOKENS: -1 is not"),
        ("paper", {"thinking": True}, "set CHAT_TEMPLATE=1"),
    ],
)
def test_no_such_protocol(name: str, changes: dict, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        read_protocol(name, **changes)
    assert message in str(refused.value)
