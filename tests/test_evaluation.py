"""`scripts/evaluate.py` as its users run it: lighteval for real, offline, both back ends, killed, refused, compared.

Each run starts Python and lighteval (five seconds), vLLM another ten: what one run can show is asserted on one run.
"""

import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import TinyPair
from evaluation_records import write_records
from launching import needs_vllm
from peft import PeftModel
from test_weights import with_adapters
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.compare import compare, read_compared
from evaluation.tasks import GROUPS
from vopd_recipes.paper import published_columns
from vopd_recipes.recipe import RecipeError

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "evaluate.py"
SHORT = ["--samples", "2", "--max-new-tokens", "12"]
EVERYTHING = [*GROUPS["math"], *GROUPS["science"], *GROUPS["built_in"]]


def evaluate(model: Path | str, output: Path, *flags: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    words = [sys.executable, str(SCRIPT), str(model), "--output", str(output), *map(str, flags)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def results_of(output: Path) -> dict:
    """The one results file of a folder, without the seconds, which differ from run to run."""
    (path,) = output.glob("*/*/results.json")
    content = json.loads(path.read_text())
    for scores in content["tasks"].values():
        del scores["seconds"]
    return content


def details_of(output: Path) -> dict[str, list[dict]]:
    """Task → every completion."""
    return {path.stem: pq.read_table(path).to_pylist() for path in output.glob("*/*/details/*.parquet")}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.mark.slow  # every task on both engines: the one run that its users make
@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_every_task_in_one_engine_start(backend: str, tiny_pair: TinyPair, records: Path, tmp_path: Path) -> None:
    flags = ["--tasks", "math,science,built_in", "--data-dir", records, "--backend", backend, "--limit", 3, *SHORT]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = evaluate(tiny_pair.teacher, tmp_path, *flags)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("Answers: 100%") >= 1 and "72/72" in done.stderr  # 12 tasks of 3 questions, 2 samples
    content = results_of(tmp_path)
    assert list(content["tasks"]) == EVERYTHING
    assert content["backend"] == backend and content["protocol"] == "paper+max_new_tokens=12"
    assert content["sampling"]["math"] == {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "max_new_tokens": 12}
    assert len(content["weights_hash"]) == 64 and content["versions"]["lighteval"] == "0.13.0"
    for scores in content["tasks"].values():
        assert (scores["n"], scores["problems"], scores["limit"]) == (2, 3, 3)
        assert 0 < scores["tokens"] <= 2 * 3 * 12
    (path,) = tmp_path.glob("*/*/results.json")
    generating = sum(scores["seconds"] for scores in json.loads(path.read_text())["tasks"].values())
    assert generating > 0
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # all but generation, in processor time, since others share the machine; vLLM's import and start are 6 s of it
    assert busy - generating < {"transformers": 15, "vllm": 25}[backend]
    for task, rows in details_of(tmp_path).items():
        assert len(rows) == 6 and {row["sample"] for row in rows} == {0, 1}, task
        assert all(row["seed"] == rows[0]["seed"] + row["sample"] for row in rows[:2])
        assert rows[0]["completion"] != rows[1]["completion"]
    table = (path.parent / "results.md").read_text()
    assert all(
        title in table for title in ("AIME 2024", "GPQA Diamond", "SciKnowEval Physics L3", "AIME 24/25", "Avg.")
    )
    # once more, with another sample: the first two stay
    first = details_of(tmp_path)
    done = evaluate(tiny_pair.teacher, tmp_path, *flags, "--tasks", "gpqa", "--samples", 3)
    assert done.returncode == 0, done.stderr[-4000:]
    again = details_of(tmp_path)["gpqa"]
    assert [row for row in again if row["sample"] < 2] == first["gpqa"] and len(again) == 9


def answered(output: Path) -> int:
    """Answers on disk, in lines that are whole."""
    lines = [line for file in output.rglob("*.jsonl") for line in file.read_bytes().split(b"\n")[:-1]]
    return sum(len(json.loads(line)) for line in lines if line.endswith(b"]"))


@pytest.mark.slow  # kills a real run
@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_a_killed_evaluation_goes_on_and_ends_as_an_undisturbed_one(
    backend: str, tiny_pair: TinyPair, tmp_path: Path
) -> None:
    flags = ["--tasks", "arithmetic,word_problems", "--limit", 12, "--samples", 4, "--backend", backend]
    flags += ["--batch-size", 4]
    words = [
        sys.executable,
        str(SCRIPT),
        str(tiny_pair.teacher),
        "--output",
        str(tmp_path / "killed"),
        *map(str, flags),
    ]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while answered(tmp_path / "killed") < 12 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = answered(tmp_path / "killed")
    assert 12 <= kept < 96
    assert not list((tmp_path / "killed").glob("*/*/results.json"))
    for output in ("killed", "undisturbed"):
        done = evaluate(tiny_pair.teacher, tmp_path / output, *flags)
        assert done.returncode == 0, done.stderr[-4000:]
    assert answered(tmp_path / "killed") == 96  # each drawn once
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "undisturbed")
    assert details_of(tmp_path / "killed") == details_of(tmp_path / "undisturbed")


@pytest.fixture(scope="module")
def adapter(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `adapter` over the student, and beside it `merged`."""
    folder = tmp_path_factory.mktemp("lora")
    model = with_adapters(AutoModelForCausalLM.from_pretrained(tiny_pair.student))
    model.save_pretrained(folder / "adapter")
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tiny_pair.student)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair.student)
    base = AutoModelForCausalLM.from_pretrained(tiny_pair.student)
    merged = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    return folder / "adapter"


@pytest.mark.slow  # three runs of each engine
@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_an_adapter_answers_as_the_merged_model(
    backend: str, adapter: Path, tiny_pair: TinyPair, tmp_path: Path
) -> None:
    base = (tiny_pair.student / "model.safetensors").read_bytes()
    flags = ["--tasks", "arithmetic", "--limit", 8, "--backend", backend, *SHORT]
    said = {}
    for name, model in (("adapter", adapter), ("merged", adapter.parent / "merged"), ("base", tiny_pair.student)):
        done = evaluate(model, tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr[-4000:]
        said[name] = [row["completion"] for row in details_of(tmp_path / name)["arithmetic"]]
    assert said["adapter"] == said["merged"] != said["base"]
    assert (tiny_pair.student / "model.safetensors").read_bytes() == base
    contents = {name: results_of(tmp_path / name) for name in said}
    assert contents["adapter"]["adapter"] and not contents["merged"]["adapter"]
    assert len({content["weights_hash"] for content in contents.values()}) == 3


@pytest.mark.slow  # two runs
def test_a_retrained_model_gets_new_answers(tiny_pair: TinyPair, tmp_path: Path) -> None:
    model, folder = AutoModelForCausalLM.from_pretrained(tiny_pair.student), tmp_path / "model"
    AutoTokenizer.from_pretrained(tiny_pair.student).save_pretrained(folder)
    flags = ["--tasks", "arithmetic", "--limit", 4, "--backend", "transformers", *SHORT]
    seen = []
    for _ in range(2):
        model.save_pretrained(folder)
        done = evaluate(folder, tmp_path / "out", *flags)
        assert done.returncode == 0, done.stderr[-4000:]
        seen.append((results_of(tmp_path / "out")["weights_hash"], details_of(tmp_path / "out")["arithmetic"]))
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(-1.0)
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1]


class _Gate(http.server.BaseHTTPRequestHandler):
    """A Hub on which everything is gated."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to it is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *words: object) -> None:
        """Nothing on the test's output."""


@pytest.fixture
def gated_hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow  # a run with a failing task among others
def test_what_fails_costs_its_task_alone(tiny_pair: TinyPair, gated_hub: str, tmp_path: Path) -> None:
    done = evaluate(
        tiny_pair.teacher, tmp_path, "--tasks", "gpqa,arithmetics,arithmetic", "--limit", 2, *SHORT,
        "--backend", "transformers", HF_ENDPOINT=gated_hub, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1",
    )  # fmt: skip
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert (
        errors[0]
        == "error: arithmetics: no such task; did you mean 'arithmetic'? (there are: "
        + ", ".join([*GROUPS, *EVERYTHING])
        + ")"
    )
    assert errors[1].startswith(
        "error: gpqa: Idavidrein/gpqa: a gated data set, and this machine has no access: accept"
    )
    assert list(results_of(tmp_path)["tasks"]) == ["arithmetic"]


@pytest.mark.slow  # the Hub's client tries for a while before it gives up
def test_an_unreachable_hub_is_one_line_per_task(tiny_pair: TinyPair, tmp_path: Path) -> None:
    done = evaluate(
        tiny_pair.teacher, tmp_path, "--tasks", "amc23,aime24", "--backend", "transformers",
        HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1",
    )  # fmt: skip
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == ["amc23", "aime24"]
    assert all("the Hub cannot be reached; check the network, or give a local file by DATA_DIR" in e for e in errors)
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.slow  # starts Python five times
@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--tasks", "minerva", "--max-new-tokens", 1010], 1, "error: minerva: its longest prompt ("),
        (["--protocol", "papers"], 2, "error: PROTOCOL: no protocol 'papers'; did you mean 'paper'?"),
        (["--limit", 0], 2, "error: LIMIT: 0 is not a number above 0"),
        (["--data-dir", "nowhere"], 2, "error: DATA_DIR: no such folder: nowhere"),
        (["--backend", "jax"], 2, "error: argument --backend: invalid choice: 'jax'"),
    ],
)
def test_refusals(flags: list, status: int, message: str, tiny_pair: TinyPair, records: Path, tmp_path: Path) -> None:
    done = evaluate(tiny_pair.teacher, tmp_path, "--data-dir", records, *flags)
    assert done.returncode == status
    last = done.stderr.strip().splitlines()[-1]
    assert message in last, done.stderr[-2000:]
    if status == 1:
        assert last.endswith(
            "tokens) and 1010 new tokens exceed the model's window of 1024; set MAX_NEW_TOKENS to 897 or less"
        )


@pytest.mark.slow  # starts Python
def test_a_model_without_chat_template(tiny_pair: TinyPair, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair.student)
    tokenizer.chat_template = None
    AutoModelForCausalLM.from_pretrained(tiny_pair.student).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = evaluate(tmp_path / "model", tmp_path, "--tasks", "arithmetic", "--protocol", "qwen", *SHORT)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "error: arithmetic: protocol qwen+max_new_tokens=12 needs a chat template and the model has none; "
        "set CHAT_TEMPLATE=0"
    )


@pytest.mark.slow  # starts Python twice: that the hint comes where the answers are known
@pytest.mark.parametrize("more", [[], ["--chat-template", 1]])
def test_an_instruct_model_that_ends_at_once_gets_a_hint(tiny_pair: TinyPair, tmp_path: Path, more: list) -> None:
    shutil.copytree(tiny_pair.student, tmp_path / "model")
    every_token = {"eos_token_id": list(range(264))}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(every_token))
    done = evaluate(tmp_path / "model", tmp_path, "--tasks", "arithmetic", "--limit", 2, *SHORT, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    hints = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    assert len(hints) == (0 if more else 1)
    assert all(line.endswith("try CHAT_TEMPLATE=1") for line in hints)


@pytest.mark.parametrize(("tokens", "hinted"), [([1, 1, 1, 9], True), ([0, 1], True), ([1, 2], False), ([7], False)])
def test_which_answers_are_a_hint(tiny_pair: TinyPair, tokens: list[int], hinted: bool) -> None:
    from evaluation.protocol import read_protocol
    from evaluation.run import raw_prompt_hint

    tokenizer = AutoTokenizer.from_pretrained(tiny_pair.student)
    assert (raw_prompt_hint(read_protocol("paper"), tokenizer, tokens) is not None) == hinted
    assert raw_prompt_hint(read_protocol("qwen"), tokenizer, tokens) is None
    tokenizer.chat_template = None
    assert raw_prompt_hint(read_protocol("paper"), tokenizer, tokens) is None


def test_no_such_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluation.checkpoint import check_there, resolve

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    unreachable = "no such folder; as a Hub id: the Hub cannot be reached and the model is not in the cache"
    for model, message in (
        (str(tmp_path), "is no model folder"),
        ("./nowhere", "no such folder"),
        ("data/nope", f"MODEL: data/nope: {unreachable}"),
        ("runs/nope", f"MODEL: runs/nope: {unreachable}"),  # nor is there a folder `runs`
        ("nope", f"MODEL: nope: {unreachable}"),
        ("what is this/nope", "no such folder, and no model of that name on the Hub"),
    ):
        for find in (resolve, check_there):
            with pytest.raises(RecipeError) as refused:
                find(model)
            assert message in str(refused.value)


def test_a_model_that_is_not_there_is_said_before_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluation import run

    def read(*_: object) -> None:
        raise AssertionError("a task's data was read")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_read", read)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "runs/gone"}')
    for model, message in (
        ("runs/nope", "runs/nope: no such folder; as a Hub id: "),
        ("adapter", "adapter is an adapter; its base model: runs/gone: no such folder; as a Hub id: "),
    ):
        assert run.main([model, "--tasks", "math"]) == 2
        assert capsys.readouterr().err.startswith(f"error: MODEL: {message}")


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    from evaluation.checkpoint import resolve

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(RecipeError, match="holds no safetensors"):
        resolve(str(tmp_path))


def write_results(folder: Path, name: str, right: list[float], protocol: str = "paper") -> Path:
    """A results file of one task with a sample per question."""
    import pyarrow as pa

    (folder / "details").mkdir(parents=True)
    rows = [{"prompt": f"q{i}", "correct": bool(value)} for i, value in enumerate(right)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "details" / "amc23.parquet")
    scores = {"title": "AMC 2023", "avg": sum(right) / len(right), "stderr": 0.05, "n": 1}
    content = {"schema_version": 1, "model": name, "revision": "main", "protocol": protocol, "backend": "vllm"}
    content |= {"weights_hash": "w", "sampling": {}}
    (folder / "results.json").write_text(json.dumps({**content, "dtype": "float32", "tasks": {"amc23": scores}}))
    return folder / "results.json"


def test_compare(tmp_path: Path) -> None:
    paths = [
        write_results(tmp_path / "a", "org/a", [0] * 10 + [1] * 10),
        write_results(tmp_path / "b", "org/b", [0] * 4 + [1] * 16),  # six questions better, none worse
        write_results(tmp_path / "c", "org/c", [1] + [0] * 9 + [1] * 10, "qwen"),  # one better
    ]
    text = compare([read_compared(path) for path in paths], tmp_path / "comparison")
    row = next(line for line in text.splitlines() if line.startswith("| AMC 2023"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[1:3] == ["50.0 ± 5.0", "80.0 ± 5.0"]
    assert cells[3].startswith("+30.0 [+10.0, +50.0]*")
    assert cells[5].startswith("+5.0 [+0.0, +15.0]") and not cells[5].endswith("*")
    assert "Measured in different ways (paper vllm float32; qwen vllm float32)" in text
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "comparison.md").read_text().startswith("| task |")


def test_compare_refuses(tmp_path: Path) -> None:
    first = write_results(tmp_path / "a", "org/a", [0, 1])
    (tmp_path / "other.json").write_text('{"schema_version": 9}')
    other = write_results(tmp_path / "b", "org/b", [0, 1])
    (tmp_path / "b" / "details" / "amc23.parquet").unlink()
    for paths, message in (
        ([first], "two results files or more"),
        ([first, tmp_path / "other.json"], "is not a results file"),
        ([first, other], "is missing: the comparison goes question by question"),
    ):
        with pytest.raises(RecipeError, match=message):
            compare([read_compared(path) for path in paths], tmp_path / "comparison")


def test_the_papers_columns() -> None:
    assert published_columns("Qwen/Qwen3-4B", {})["paper"]["math500"] == "83.5/93.8"
    recipe = {
        "model_name_or_path": "Qwen/Qwen3-1.7B-Base",
        "teacher_model_name_or_path": "Qwen/Qwen3-1.7B",
        "divergence": "sampled",
        "baseline": "value",
        "dataset_name": "data/dapo-math-17k",
    }
    columns = published_columns("me/mine", recipe)
    assert columns["paper, vOPD"]["minerva"] == "26.2/48.9" and columns["paper, vOPD"]["average"] == "33.1"
    assert columns["paper, before"]["average"] == "20.6"
    science = published_columns("me/mine", recipe | {"dataset_name": "data/sciknoweval-chemistry"})
    assert science["paper, vOPD"] == {"sciknoweval_chemistry": "34.7", "gpqa": "28.4"}
    assert published_columns("me/mine", recipe | {"teacher_model_name_or_path": "me/teacher"}) == {}


@pytest.mark.slow  # the documented example, run as it stands
def test_the_readmes_example_adds_a_task(tiny_pair: TinyPair, tmp_path: Path) -> None:
    text = (ROOT / "evaluation" / "README.md").read_text()
    program = text.split("```python\n")[1].split("```")[0]
    assert len(program.splitlines()) <= 24
    rows = [{"question": "2 + 3?", "answer": "Two and three.\n#### 5"}, {"question": "1 + 1?", "answer": "#### 2"}]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, "-c", program, str(tiny_pair.teacher), "--tasks", "gsm8k", "--data-dir", str(tmp_path)]
    words += ["--backend", "transformers", "--output", str(tmp_path), *SHORT]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    details = details_of(tmp_path)["gsm8k"]
    assert [row["gold"] for row in details[::2]] == ["5", "2"]
    assert details[0]["prompt"].startswith("2 + 3?\n\nPlease reason step by step")


def test_make_hands_everything_on() -> None:
    words = ["MODEL=org/name", "REVISION=step-00000100", "TASKS=math,gpqa", "BACKEND=vllm", "PROTOCOL=released"]
    words += ["SAMPLES=4", "LIMIT=10", "DATA_DIR=my data", "COMPARE=a.json,b.json"]
    command = ["make", "-n", "--no-print-directory", "-o", ".venv/.evaluation", "evaluate", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    recipe = " ".join(done.stdout.replace("\\\n", " ").split())
    assert recipe.endswith(
        'scripts/evaluate.py "org/name" --revision "step-00000100" --tasks "math,gpqa" --backend "vllm" '
        '--protocol "released" --samples "4" --limit "10" --data-dir "my data" --compare "a.json,b.json"'
    )
