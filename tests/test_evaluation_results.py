"""Results files: nothing is lost between evaluations, nothing claimed that was not measured, bad input is one line."""

import errno
import json
import multiprocessing
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TinyPair
from evaluation_records import named

from evaluation.checkpoint import Checkpoint, resolve
from evaluation.compare import beside, compare, read_compared
from evaluation.engines import room_for
from evaluation.grades import Graded, scores
from evaluation.harness import Doc
from evaluation.model import Answers
from evaluation.output import digest, table, write_results
from evaluation.responses import Response
from evaluation.run import main
from evaluation.sources import hub
from evaluation.suite import Measured
from evaluation.tasks import TASKS, Task, columns
from vopd_recipes.files import SAME_MEASUREMENT, results_path
from vopd_recipes.grading import Grade
from vopd_recipes.hub.card import Published, model_card
from vopd_recipes.hub.evaluations import _benchmark_entries, publishable_results
from vopd_recipes.paper import published_columns
from vopd_recipes.recipe import RecipeError

ABOUT = {
    "model": "org/name", "revision": "main", "weights_hash": "0" * 64, "adapter": False, "protocol": "paper",
    "sampling": {}, "backend": "vllm", "dtype": "bfloat16", "versions": {},
}  # fmt: skip


def measured(name: str, right: list[bool]) -> Measured:
    """A task with one sample of each question."""
    questions = [
        Graded(
            Doc(query=f"{name} {i}", choices=["7"], gold_index=0, id=str(i), task_name=name,
                specific={"question": f"{i}", "gold": "7", "letters": ""}),
            Answers(text=["7"], responses=[Response(f"{i}", 0, "7", 3, True, 0.5)]),
            [Grade(value, "7", True)],
        )
        for i, value in enumerate(right)
    ]  # fmt: skip
    task = Measured(scores(questions), questions)
    task.scores.update(named(name), limit=None, source="built in", questions_sha256=digest(task), max_new_tokens=64)
    return task


def write(folder: Path, tasks: dict[str, list[bool]], **changes: object) -> Path:
    return write_results(
        folder, {**ABOUT, **changes}, {name: measured(name, right) for name, right in tasks.items()}, {}
    )


def tasks_in(path: Path) -> dict[str, float]:
    return {name: scores["avg"] for name, scores in json.loads(path.read_text())["tasks"].items()}


def test_results_of_another_kind_are_moved_and_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"amc23": [True, False]})
    assert not caplog.records
    path = write(tmp_path, {"aime24": [True]}, protocol="qwen")
    assert tasks_in(path) == {"aime24": 1.0}
    (earlier,) = tmp_path.glob("earlier/*/results.json")
    assert tasks_in(earlier) == {"amc23": 0.5} and earlier.parent.name.startswith("paper-vllm-bfloat16-")
    assert (earlier.parent / "details" / "amc23.parquet").is_file() and (earlier.parent / "results.md").is_file()
    assert [file.name for file in (tmp_path / "details").iterdir()] == ["aime24.parquet"]
    assert caplog.messages == [f"results of paper (vllm, bfloat16) were here before; now in {earlier.parent}"]
    # the first kind again: its old task stands beside its new one
    path = write(tmp_path, {"aime25": [False]})
    assert tasks_in(path) == {"amc23": 0.5, "aime25": 0.0}
    assert sorted(file.stem for file in (tmp_path / "details").iterdir()) == ["aime25", "amc23"]
    (other,) = tmp_path.glob("earlier/*/results.json")
    assert tasks_in(other) == {"aime24": 1.0} and other.parent.name.startswith("qwen-")
    # other weights of the same kind are another kind
    assert tasks_in(write(tmp_path, {"amc23": [True]}, weights_hash="1" * 64)) == {"amc23": 1.0}
    assert len(list(tmp_path.glob("earlier/*/results.json"))) == 2


def write_many(folder: Path, name: str) -> None:
    for _ in range(20):
        write(folder, {name: [True]})


def test_two_evaluations_that_end_together_keep_each_others_tasks(tmp_path: Path) -> None:
    names = ["amc23", "aime24", "aime25", "gpqa"]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert tasks_in(tmp_path / "results.json") == dict.fromkeys(names, 1.0)
    assert {path.stem: pq.read_table(path).num_rows for path in tmp_path.glob("details/*")} == dict.fromkeys(names, 1)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert tasks_in(write(tmp_path, {"amc23": [True]})) == {"amc23": 1.0}
    assert "cannot be locked (Function not implemented)" in caplog.text


def test_a_glance_says_whose_place_it_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"amc23": [True, False], "gpqa": [True]})
    write(tmp_path, {"amc23": [True], "gpqa": [False]})
    (said,) = caplog.messages
    assert said.startswith("amc23: 1 problems × 1 answers take the place of 2 × 1; ")


def test_damaged_details_of_a_comparison(tmp_path: Path) -> None:
    path = write(tmp_path, {"amc23": [True]})
    details = tmp_path / "details" / "amc23.parquet"
    details.write_bytes(details.read_bytes()[:-10])
    with pytest.raises(RecipeError, match=r"COMPARE: .*amc23.parquet cannot be read \(.*\); evaluate amc23 again"):
        read_compared(path)


def test_a_disk_that_takes_no_more(tiny_pair: TinyPair, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("evaluation.responses.ResponseStore.add", full)
    flags = ["--tasks", "arithmetic", "--backend", "transformers", "--limit", "1", "--samples", "1"]
    flags += ["--max-new-tokens", "1", "--output", str(tmp_path / "out")]
    status, lines = said([str(tiny_pair.student), *flags], capsys)
    assert status == 2 and [line for line in lines if line.startswith(("error", "Traceback"))] == [
        "error: [Errno 28] No space left on device; the answers so far are kept, and the same command goes on"
    ]


def test_the_hub_takes_what_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, {"gpqa": [True, False]})
    content = publishable_results(path).content
    assert content["tasks"]["gpqa"]["source"] == "built in"
    assert set(SAME_MEASUREMENT) <= content.keys()


def test_the_digest_is_of_prompts_and_golds() -> None:
    assert digest(measured("amc23", [True, True])) == digest(measured("amc23", [False, True]))
    assert digest(measured("amc23", [True])) != digest(measured("aime24", [True]))
    assert digest(measured("amc23", [True])) != digest(measured("amc23", [True, True]))


def test_a_comparison_names_the_tasks_that_it_leaves_out(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"amc23": [True, False], "gpqa": [True]})
    second = write(tmp_path / "b", {"amc23": [True, True], "aime24": [True]}, model="org/other")
    text = compare([read_compared(first), read_compared(second)], tmp_path / "comparison")
    assert "Not compared: org/name also has gpqa." in text and "Not compared: org/other also has aime24." in text
    assert "| AMC 2023 | 50.0" in text and "| GPQA" not in text


def test_results_that_are_written_anew_are_compared_with_what_they_were(tmp_path: Path) -> None:
    before = [read_compared(write(tmp_path / "a", {"amc23": [True, True]}))]
    path = write(tmp_path / "a", {"amc23": [False, True]})
    text = compare(beside(before, path), tmp_path / "comparison")
    assert "| org/name (before): avg@n ± s.e. | org/name: avg@n ± s.e. |" in text
    assert "| 100.0 ± 0.0 | 50.0 ± 50.0 | -50.0 [" in text
    path = write(tmp_path / "a", {"amc23": [False, False]}, protocol="qwen")  # moves the others aside
    text = compare(beside(before, path), tmp_path / "comparison")
    assert "| org/name main paper (before): avg@n ± s.e. | org/name main qwen: avg@n ± s.e. |" in text
    assert "| 100.0 ± 0.0 | 0.0 ± 0.0 | -100.0 [" in text


PAIR = {"model_name_or_path": "Qwen/Qwen3-1.7B-Base", "teacher_model_name_or_path": "Qwen/Qwen3-1.7B"}
OPD = {**PAIR, "divergence": "sampled", "baseline": "none", "dataset_name": "dapo"}


def notes(content: dict, recipe: dict) -> str:
    return "\n".join(line for line in table(content, recipe).splitlines()[2:] if line and not line.startswith("|"))


def test_what_keeps_numbers_from_the_papers_is_said(tmp_path: Path) -> None:
    content = json.loads(write(tmp_path, {"amc23": [True] * 4}).read_text())
    content["tasks"]["amc23"]["n"] = 32
    assert notes(content, {}) == ""
    assert "OPD in the authors' released code has a constant baseline of 1" in notes(content, OPD)
    vopd = {**OPD, "baseline": "value"}
    assert notes(content, vopd) == ""
    content["tasks"]["amc23"] |= {"n": 2, "limit": 4}
    content["protocol"] = "paper+max_new_tokens=12"
    said = notes(content, vopd)
    assert "LIMIT: only some questions of amc23 (4)" in said
    assert (
        "The paper's columns are of its own protocol, `paper`; these numbers are of paper+max_new_tokens=12." in said
    )
    assert "Other numbers of samples than the paper's, on which pass@n depends: amc23 (2)." in said


@pytest.mark.parametrize(
    "text",
    [
        "- a\n- list",
        "{ not yaml",
        "just a sentence",
        "\x00",
        "model_name_or_path: Qwen/Qwen3-1.7B-Base\ndataset_mixture: {org/data: 1.0}\nlearning_rate: 1",
        "divergence: jensen_shannon\nmodel_name_or_path: a",
        "divergence: [full]\ndataset_name: dapo",
    ],
)
def test_a_recipe_of_another_library_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = Checkpoint("org/name", "main", tmp_path, None, "0" * 64).recipe()
    assert published_columns("org/name", recipe) == {}
    assert published_columns("org/name", {**PAIR, "dataset_name": "dapo", "divergence": "jensen_shannon"}) == {}
    assert published_columns("org/name", {**PAIR, "dataset_mixture": {"dapo": 1.0}}) == {}


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (24, 32), (64, 64), (257, 320), (512, 512)])
def test_vllm_gets_a_rank_that_it_takes(rank: int, room: int) -> None:
    assert room_for(rank) == room


def test_an_adapters_rank_is_its_greatest(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "rank_pattern": {"q_proj": 24, "v_proj": 4}}))
    assert Checkpoint("a", "main", tmp_path, tmp_path, "0" * 64).adapter_rank() == 24
    with pytest.raises(ValueError, match="rank 513 is above vLLM's 512"):
        room_for(513)


def test_a_folder_has_no_revision(tiny_pair: TinyPair) -> None:
    with pytest.raises(RecipeError, match="REVISION: .* is a folder, and revisions are a Hub model's"):
        resolve(str(tiny_pair.student), "step-00000100")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"base_model_name_or_path": "a/b', "its adapter_config.json cannot be read (Unterminated string"),
        ("[]", "its adapter_config.json cannot be read ('list' object has no attribute 'get')"),
        ('{"r": 8}', "is an adapter without a base; name base_model_name_or_path in its adapter_config.json"),
        ('{"base_model_name_or_path": null}', "is an adapter without a base; "),
        ('{"base_model_name_or_path": "./gone"}', "is an adapter; its base model: no such folder: ./gone"),
    ],
)
def test_an_adapter_that_is_damaged_or_names_no_base(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(RecipeError) as refused:
        resolve(str(tmp_path))
    assert message in str(refused.value) and str(refused.value).startswith("MODEL: ")


def test_damaged_generation_settings(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pair.student, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": ')
    checkpoint = resolve(str(folder))
    with pytest.raises(RecipeError, match="MODEL: .*model: its generation settings cannot be read: "):
        checkpoint.end_tokens(checkpoint.tokenizer())


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit status and lines of error."""
    status = main(arguments)
    return status, capsys.readouterr().err.strip().splitlines()


def test_bad_commands_are_one_line(tiny_pair: TinyPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = str(tiny_pair.student), ["--output", str(tmp_path)]
    assert said([model, "--tasks", ",", *output], capsys) == (2, ["error: TASKS: ',' names no task"])
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "below"
    message = f"error: OUTPUT: nothing can be written to {place} (Not a directory); name another place"
    assert said([model, "--tasks", "arithmetic", "--output", str(place)], capsys) == (2, [message])
    other = write(tmp_path / "a", {"amc23": [True]})
    status, lines = said([model, "--tasks", "nosuch", "--compare", str(other), *output], capsys)
    assert status == 1 and len(lines) == 1 and lines[0].startswith("error: nosuch: no such task")
    again = write(tmp_path / "b", {"amc23": [False]})
    both = f"{other},{again}"
    status, lines = said([model, "--tasks", "nosuch", "--compare", both, *output], capsys)
    assert status == 1 and lines[0].startswith("error: nosuch: no such task")
    assert (tmp_path / "comparison.md").is_file()  # what can be compared is


def test_what_cannot_be_compared_is_seen_before_the_evaluation(
    tiny_pair: TinyPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = write(tmp_path / "a", {"amc23": [True]})
    gone = write(tmp_path / "b", {"amc23": [True]}).parent / "details" / "amc23.parquet"
    gone.unlink()
    flags = ["--tasks", "arithmetic", "--limit", "1", "--output", str(tmp_path / "out")]
    for words, message in (
        (f"{there},nowhere.json", "COMPARE: no such file: nowhere.json"),
        (",", "COMPARE: ',' names no results file"),
        (
            str(tmp_path / "b" / "results.json"),
            f"COMPARE: {gone} is missing: the comparison goes question by question",
        ),
    ):
        assert said([str(tiny_pair.student), *flags, "--compare", words], capsys) == (2, [f"error: {message}"])
    assert not (tmp_path / "out").exists()


def test_a_model_is_compared_with_its_own_earlier_results(
    tiny_pair: TinyPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of other weights in the same place: their file is moved while the new one is written."""
    here = resolve(str(tiny_pair.student))
    path = results_path(tmp_path, here.name, here.revision)
    write(path.parent, {"arithmetic": [True]}, model=here.name, revision=here.revision)
    flags = ["--tasks", "arithmetic", "--backend", "transformers", "--limit", "2", "--samples", "2"]
    flags += ["--max-new-tokens", "1", "--output", str(tmp_path), "--compare", str(path)]
    assert main([str(tiny_pair.student), *flags]) == 0
    table = capsys.readouterr().out.partition("results: ")[2]
    assert f"| {here.name} local paper (before): avg@n ± s.e. |" in table and "| 100.0 ± 0.0 | 0.0 ± 0.0 |" in table


def test_a_row_that_is_wrong_costs_its_task(
    tiny_pair: TinyPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "minerva.jsonl").write_text('{"question": "1 + 1?", "answer": null}\n')
    flags = ["--tasks", "minerva,arithmetic", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out")]
    flags += ["--backend", "transformers", "--limit", "2", "--samples", "2", "--max-new-tokens", "12"]
    status = main([str(tiny_pair.student), *flags])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    reason = "row 0 is not a question of Minerva Math: ValueError: its 'answer' is null; it has question, answer"
    assert status == 1 and errors == [f"error: minerva: {reason}"]
    (path,) = (tmp_path / "out").glob("*/*/results.json")
    (name, task), *rest = json.loads(path.read_text())["tasks"].items()
    assert (name, rest) == ("arithmetic", []) and len(task["questions_sha256"]) == 64
    assert (task["source"], task["max_new_tokens"], task["limit"]) == ("built in", 12, 2)


def test_a_task_that_nobody_knows_is_shown_as_what_it_is(
    tiny_pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made up here, of a local file that stands in for a set on the Hub; who reads the results has not heard of it."""
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task("house", "House sums", "math", hub("org/sums", "sums", config="small"), columns("question", "answer"))
    flags = ["--tasks", "house", "--data-dir", str(tmp_path), "--backend", "transformers", "--max-new-tokens", "4"]
    paths = []
    with monkeypatch.context() as known:
        known.setitem(TASKS, "house", task)
        for model in (tiny_pair.student, tiny_pair.teacher):
            output = tmp_path / model.name
            assert main([str(model), *flags, "--samples", "2", "--output", str(output)]) == 0
            assert "| House sums | " in capsys.readouterr().out
            paths += output.glob("*/*/results.json")
    content = json.loads(paths[0].read_text())
    scores = content["tasks"]["house"]
    about = {"title": "House sums", "source": "sums.jsonl", "n": 2, "problems": 3}
    about |= {"dataset_name": "sums.jsonl", "dataset_config": None, "dataset_split": None}
    assert {name: scores[name] for name in about} == about

    comparison = compare([read_compared(path) for path in paths], tmp_path / "comparison")
    assert [line.split(" | ")[0] for line in comparison.splitlines()[2:3]] == ["| House sums"]
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: org/base\ndataset_name: dapo\nbaseline: value\n")
    card = model_card(Published(tmp_path, "org/name", "main", {"main": content}))
    assert "| `main` | House sums | " in card
    (entry,) = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert entry["dataset"] == {"type": "sums.jsonl", "name": "House sums"}
    assert [metric["name"] for metric in entry["metrics"]] == ["avg@2", "pass@2", "maj@2"]
    assert "org/sums" not in card + comparison and "house" not in card + comparison.partition("\n\nwritten")[0]


def test_results_from_before_titles_are_read(tmp_path: Path) -> None:
    """In the table, in a comparison, on a leaderboard: the task's name, and no claim about its questions."""
    paths = [write(tmp_path / name, {"gpqa": [True, False]}) for name in "ab"]
    new = json.loads(paths[0].read_text())
    assert [*_benchmark_entries("org/name", "main", new)] == ["gpqa"]
    local = {**new, "tasks": {"gpqa": new["tasks"]["gpqa"] | {"dataset_name": "gpqa.jsonl", "dataset_config": None}}}
    assert _benchmark_entries("org/name", "main", local) == {}
    for path in paths:
        old = json.loads(path.read_text())
        for name in named("gpqa"):
            del old["tasks"]["gpqa"][name]
        path.write_text(json.dumps(old))
    assert publishable_results(paths[0]).content == old and _benchmark_entries("org/name", "main", old) == {}
    assert "| gpqa | 50.0" in compare([read_compared(path) for path in paths], tmp_path / "comparison")
    path = write(tmp_path / "a", {"amc23": [True]})  # measured later: the older task stays as it is
    assert json.loads(path.read_text())["tasks"]["gpqa"] == old["tasks"]["gpqa"]
    text = (path.parent / "results.md").read_text()
    assert "| gpqa | 50.0" in text and "| AMC 2023 | 100.0" in text


@pytest.mark.parametrize(("push", "published"), [("PUSH=1", True), ("PUSH=0", False), ("PUSH=", False)])
def test_only_push_1_publishes(push: str, published: bool) -> None:
    words = ["make", "-n", "--no-print-directory", "-o", ".venv/.evaluation", "evaluate", "MODEL=org/name", push]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and ("--push" in done.stdout) is published
