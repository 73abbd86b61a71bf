"""Results go up and come back; revisions are listed, fetched, checked and evaluated.

Slow where another process imports transformers or datasets to read what was published as anybody would.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from evaluation_records import named
from fake_hub import WRITER
from huggingface_hub import HfApi, parse_eval_result_entries, snapshot_download
from safetensors.torch import save_file
from test_card import ENVIRONMENT, RECIPE, metadata_of, task
from test_hub import assert_nothing_private
from transformers import AutoModelForCausalLM

from evaluation.checkpoint import resolve
from vopd_recipes.files import mark_complete
from vopd_recipes.hub import publish_run
from vopd_recipes.hub.download import download, list_revisions
from vopd_recipes.hub.evaluations import publishable_results, published_results, push_results
from vopd_recipes.hub.queue import Queue, Target
from vopd_recipes.hub.revisions import licence_of, release_of
from vopd_recipes.hub.sweep import plot_sweep, sweep_steps
from vopd_recipes.hub.upload import Pace
from vopd_recipes.models import load_student
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.tiny import pair as tiny

ROOT = Path(__file__).parent.parent
STEP = "step-00000100"


def save(seed, tokenizer, folder):
    """A model of its own weights into a folder that may hold one."""
    tiny.tiny_qwen3(32, 1, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def published(hub, api, home, tokenizer):
    """A run of two steps with real models, on the Hub: steps 100 and 200, and the final one."""
    run = home / "run"
    for index, folder in enumerate((run / "checkpoint-100", run / "checkpoint-200", run)):
        save(min(index, 1), tokenizer, folder)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 100 * min(index + 1, 2)}))
        if folder != run:
            mark_complete(folder)
    private = {
        "output_dir": str(run), "run_name": "alicesmith's run", "deepspeed": "../alicesmith/zero.json",
        "teacher_server_url": f"http://alicesmith:{WRITER}@node7:8000", "log_dir": f"file://{home}/logs",
    }  # fmt: skip
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | private))
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (run / "plots").mkdir()
    (run / "plots" / "training.png").write_bytes(b"curves")
    base = hub.create("model", "Qwen/Qwen3-1.7B-Base", False)
    base.commit("main", {"README.md": hub.store(b"---\nlicense: apache-2.0\n---\n")}, "card")
    publish_run(run, Target("org/name"), api, Pace(0.1, 0.5, 3.0))
    return run


def evaluated(folder, revision, tasks, **fields):
    """A results file and its details, as the evaluation leaves them."""
    tasks = {name: named(name) | scores for name, scores in tasks.items()}
    content = {
        "schema_version": 1, "model": "org/name", "revision": revision, "weights_hash": f"w-{revision}",
        "protocol": "paper", "sampling": {}, "backend": "vllm", "dtype": "bfloat16",
        "versions": {"lighteval": "0.13.0"}, "tasks": tasks, **fields,
    }  # fmt: skip
    (folder / "details").mkdir(parents=True, exist_ok=True)
    for name, scores in tasks.items():
        rows = {"question": ["1+1=?"], "completion": ["2"], "correct": [True], "avg": [scores["avg"]]}
        pq.write_table(pa.table(rows), folder / "details" / f"{name}.parquet")
    (folder / "results.json").write_text(json.dumps(content))
    return publishable_results(folder / "results.json")


# Results -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_go_up_and_come_back(hub, api, published, tmp_path):
    first = evaluated(tmp_path / "a", STEP, {"math500": task(0.5, 0.01), "gpqa": task(0.25, 0.02, problems=198)})
    final = evaluated(tmp_path / "b", "main", {"math500": task(0.6413, 0.02)})
    assert push_results(api, first) == STEP
    before = hub.files("org/name-evals", "main", "dataset")
    assert push_results(api, final) == "v1"
    files = hub.files("org/name-evals", "main", "dataset")
    assert {name: files[name] for name in before if name != "README.md"} == {
        name: content for name, content in before.items() if name != "README.md"
    }
    assert hub.repositories["dataset", "org/name-evals"].private
    known = published_results(api, "org/name")
    assert known.keys() == {STEP, "v1"} and known[STEP]["tasks"] == first.content["tasks"]

    on_main, on_step = (hub.files("org/name", revision) for revision in ("main", STEP))
    card, step_card = on_main["README.md"].decode(), on_step["README.md"].decode()
    assert "| `main` | MATH-500 | 64.13 ± 3.92 |" in card and f"| `{STEP}` | MATH-500 | 50.0 ± 1.96 |" in card
    values = [
        metric["value"] for entry in metadata_of(card)["model-index"][0]["results"] for metric in entry["metrics"]
    ]
    assert values == [64.13, 84.8, 70.12]
    assert len(metadata_of(step_card)["model-index"][0]["results"]) == 2
    (entry,) = parse_eval_result_entries(yaml.safe_load(on_step[".eval_results/gpqa.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("Idavidrein/gpqa", "diamond", 25.0)
    assert ".eval_results/gpqa.yaml" not in on_main  # nothing of another revision's weights

    # Publishing the run again leaves the results, also where its curves have moved on and its state was rewritten.
    (published / "plots" / "training.png").write_bytes(b"newer curves")
    (published / "trainer_state.json").write_text(json.dumps({"global_step": 200, "log_history": []}))
    publish_run(published, Target("org/name"), api, Pace(0.1, 0.5, 3.0))
    assert hub.files("org/name", "main")["README.md"].decode() == card
    assert b"log_history" in hub.files("org/name", "main")["trainer_state.json"]
    assert hub.files("org/name", STEP).keys() == on_step.keys()
    assert ".eval_results/gpqa.yaml" in hub.files("org/name", STEP)
    code = (
        "from datasets import load_dataset\n"
        "for split in ('step_00000100', 'v1'):\n"
        "    print(load_dataset('org/name-evals', 'math500', split=split)['avg'][:])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.split() == ["[0.5]", "[0.6413]"], done.stderr[-3000:]


def test_results_are_added_and_never_overwritten(api, published, tmp_path):
    push_results(api, evaluated(tmp_path / "a", STEP, {"math500": task(0.5, 0.01)}))
    push_results(api, evaluated(tmp_path / "b", STEP, {"aime24": task(0.1, 0.01)}))
    assert published_results(api, "org/name")[STEP]["tasks"].keys() == {"math500", "aime24"}
    for other in ({"weights_hash": "other"}, {"protocol": "released"}, {"dtype": "float32"}):
        with pytest.raises(RecipeError, match=f"results of {STEP} are there with {next(iter(other))}"):
            push_results(api, evaluated(tmp_path / "c", STEP, {"math500": task(0.9, 0.01)}, **other))
    assert published_results(api, "org/name")[STEP]["tasks"]["math500"]["avg"] == 0.5


@pytest.mark.parametrize("link", ["LICENSE", "https://huggingface.co/org/base/blob/main/LICENSE"])
def test_a_licence_of_its_own_keeps_its_name_and_link(hub, api, link):
    said = f"license: other\nlicense_name: research\nlicense_link: {link}\nlicense_files: x"
    hub.create("model", "org/base", False).commit(
        "main", {"README.md": hub.store(f"---\n{said}\n---\n".encode())}, "card"
    )
    address = "https://huggingface.co/org/base/blob/main/LICENSE"
    found = licence_of(api, "org/base")
    assert found == {"license": "other", "license_name": "research", "license_link": address}
    assert licence_of(api, "org/nothing") == licence_of(api, "./folder") == {}


def test_nothing_private_goes_up_with_results(hub, api, published, home, tmp_path):
    """Neither from the results file nor from the recipe that the new cards repeat."""
    scores = task(0.5, 0.01, source=f"{home}/sets/math500.jsonl")
    private = {"versions": {f"{home}/vllm": "0.32.0"}, "sampling": {"template": f"data/alicesmith/{WRITER}"}}
    push_results(api, evaluated(tmp_path / "a", "main", {"math500": scores}, **private))
    assert hub.files("org/name", "main")["README.md"].count(b"50.0") == 2
    known = published_results(api, "org/name")["v1"]
    assert known["tasks"]["math500"]["source"] == "./math500.jsonl" and known["versions"] == {"./vllm": "0.32.0"}
    assert_nothing_private(hub, home)


@pytest.mark.parametrize("change", [{"n": 4}, {"problems": 499}])
def test_a_smaller_measurement_does_not_take_a_larger_ones_place(api, published, tmp_path, change):
    push_results(api, evaluated(tmp_path / "a", STEP, {"math500": task(0.5, 0.01)}))
    smaller = evaluated(tmp_path / "b", STEP, {"math500": task(0.9, 0.01) | change, "aime24": task(0.1, 0.01)})
    ((field, value),) = change.items()
    with pytest.raises(RecipeError, match=rf"math500 of {STEP} is there with {field}: \d+, this one has {value}"):
        push_results(api, smaller)
    assert published_results(api, "org/name")[STEP]["tasks"] == {"math500": named("math500") | task(0.5, 0.01)}
    push_results(api, evaluated(tmp_path / "c", STEP, {"math500": task(0.6, 0.01)}))  # measured again as before
    assert published_results(api, "org/name")[STEP]["tasks"]["math500"]["avg"] == 0.6


def test_a_new_final_model_does_not_inherit_results(hub, api, published, tmp_path, tokenizer):
    push_results(api, evaluated(tmp_path / "a", "main", {"gpqa": task(0.5, 0.01)}))
    assert ".eval_results/gpqa.yaml" in hub.files("org/name", "main")
    save(9, tokenizer, published)
    publish_run(published, Target("org/name"), api, Pace(0.1, 0.5, 3.0))
    files = hub.files("org/name", "main")
    assert ".eval_results/gpqa.yaml" not in files and b"## Results" not in files["README.md"]
    assert release_of(api, "org/name", "main") == "v2"
    push_results(api, evaluated(tmp_path / "b", "main", {"gpqa": task(0.6, 0.01)}, weights_hash="new"))
    assert published_results(api, "org/name").keys() == {"v1", "v2"}
    publish_run(published, Target("org/name"), api, Pace(0.1, 0.5, 3.0), tag="paper")
    repository = hub.repositories["model", "org/name"]
    assert {"v1", "v2", "paper"} == repository.tags.keys()
    # Another model under a release's name: refused before `main` holds it, and nothing waits.
    save(10, tokenizer, published)
    commits = len(repository.commits)
    with pytest.raises(RecipeError, match="org/name: tag paper is another release's; name a new one"):
        publish_run(published, Target("org/name"), api, Pace(0.1, 0.5, 3.0), tag="paper")
    assert len(repository.commits) == commits and not Queue(published).entries()


def test_results_stay_with_their_weights(hub, api, published, tmp_path, tokenizer):
    """A second run into the repository: what was measured before is no row of a card, and makes room."""
    commits = {name: str(api.repo_info("org/name", revision=name).sha) for name in ("main", STEP)}
    push_results(api, evaluated(tmp_path / "a", STEP, {"math500": task(0.5, 0.01)}, commit=commits[STEP]))
    again = tmp_path / "again"
    shutil.copytree(published, again, ignore=shutil.ignore_patterns(".hub-queue", "queued"))
    for seed, folder in ((8, again / "checkpoint-100"), (9, again)):
        save(seed, tokenizer, folder)
    publish_run(again, Target("org/name"), api, Pace(0.1, 0.5, 3.0))

    late = evaluated(tmp_path / "b", STEP, {"aime24": task(0.1, 0.01)}, commit=commits[STEP])
    with pytest.raises(RecipeError, match=f"{STEP} holds other weights by now than were evaluated"):
        push_results(api, late)
    gone = evaluated(tmp_path / "b", STEP, {"aime24": task(0.1, 0.01)}, commit="0" * 40)
    with pytest.raises(RecipeError, match="nothing is there any more of commit 0000"):
        push_results(api, gone)
    # What main held then is a release by now; the step's row is gone from main's card.
    assert (
        push_results(api, evaluated(tmp_path / "c", "main", {"math500": task(0.6, 0.01)}, commit=commits["main"]))
        == "v1"
    )
    card = hub.files("org/name", "main")["README.md"].decode()
    assert "| `v1` | MATH-500 | 60.0" in card and f"| `{STEP}` |" not in card

    now = str(api.repo_info("org/name", revision=STEP).sha)
    fields = {"commit": now, "weights_hash": "other"}
    push_results(api, evaluated(tmp_path / "d", STEP, {"aime24": task(0.1, 0.01)}, **fields))
    assert published_results(api, "org/name")[STEP]["tasks"].keys() == {"aime24"}
    files = hub.files("org/name-evals", "main", "dataset")
    assert f"details/aime24/{STEP}.parquet" in files and f"details/math500/{STEP}.parquet" not in files
    assert "math500" in files["README.md"].decode()  # the release's
    assert f"| `{STEP}` | AIME 2024 |" in hub.files("org/name", "main")["README.md"].decode()


def test_someone_else_commits_at_the_same_time(hub, api, published, tmp_path):
    """Between our reading and our writing: the Hub refuses, we read again, and both are there."""
    model = hub.repositories["model", "org/name"]

    def commit():
        files = {**model.find("main").files, "NOTES.md": hub.store(b"by hand")}
        model.commit("main", files, "by hand")

    hub.fail("POST .*models/.*/commit/main", 1, status=412, then=commit)
    push_results(api, evaluated(tmp_path / "a", "main", {"math500": task(0.5, 0.01)}))
    files = hub.files("org/name", "main")
    assert files["NOTES.md"] == b"by hand" and b"50.0" in files["README.md"]


class Watched(list):
    """A Hub's record of requests: before the first of a kind is answered, something happens."""

    def __init__(self, pattern, then):
        super().__init__()
        self.pattern, self.then = pattern, then

    def append(self, request):
        super().append(request)
        if self.then and re.search(self.pattern, request):
            then, self.then = self.then, None
            then()


@pytest.mark.parametrize("when", ["GET /api/models/org/name/revision/main", "POST /api/models/org/name/commit/main"])
def test_two_pushes_at_the_same_time_lose_no_row(hub, api, published, tmp_path, when):
    """The second runs whole while the first is about to make main's card, whatever it has read by then."""
    first = evaluated(tmp_path / "a", STEP, {"math500": task(0.5, 0.01)})
    second = evaluated(tmp_path / "b", "step-00000200", {"math500": task(0.6, 0.01)})
    push_results(api, evaluated(tmp_path / "c", STEP, {"aime24": task(0.1, 0.01)}))
    hub.requests = Watched(when, lambda: push_results(HfApi(hub.url, WRITER), second))
    push_results(api, first)
    assert hub.requests.then is None
    card = hub.files("org/name", "main")["README.md"].decode()
    rows = {tuple(line.split(" | ")[:2]) for line in card.splitlines() if line.startswith("| `step-")}
    assert rows == {
        (f"| `{STEP}`", "MATH-500"), (f"| `{STEP}`", "AIME 2024"), ("| `step-00000200`", "MATH-500"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "not a results file"),
        ({"model": "data/runs/x/y"}, "is no model on the Hub"),
        ({"revision": "local"}, "is no model on the Hub"),
        ({"revision": "refs/pr/1"}, "cannot name a split"),
        ({"tasks": {"amc23": {}}}, "amc23.parquet is missing; evaluate amc23 again"),
        ({"tasks": {"math500": {"limit": 10}}}, "math500 was limited to 10 questions; evaluate it without LIMIT"),
    ],
)
def test_what_is_no_publishable_results_file(tmp_path, change, message):
    results = evaluated(tmp_path, STEP, {"math500": task(0.5, 0.01)})
    results.path.write_text(json.dumps({**results.content, **change}))
    with pytest.raises(RecipeError, match=message):
        publishable_results(results.path)


# Back ----------------------------------------------------------------------------------------------------------------


def script(name, *words):
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=ROOT)


@pytest.mark.slow
def test_scripts_publish_list_and_download(hub, api, published, tmp_path):
    listed = script("download.py", "org/name", "--list")
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["main", STEP, "step-00000200", "v1"], listed.stderr
    assert all(line.endswith("  complete") for line in lines)
    fetched = script("download.py", "org/name", "--revision", STEP, "--to", tmp_path / "fetched")
    folder = Path(fetched.stdout.strip())
    assert (folder / "model.safetensors").read_bytes() == (published / "checkpoint-100/model.safetensors").read_bytes()
    wrong = script("download.py", "org/name", "--revision", "step-7")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: org/name has no revision step-7")

    wrong = script("download.py", "a/b/c", "--list")
    said = "error: a/b/c: no name of a repository on the Hub; give it as org/name\n"
    assert wrong.returncode == 2 and wrong.stderr == said

    again = script("publish.py", published, "--hub-model-id", "org/again")
    assert again.returncode == 0 and "main published, release v1" in again.stderr
    assert WRITER not in again.stderr


def test_a_training_run_starts_from_a_published_revision(api, published, write_recipe):
    recipe = load_recipe(write_recipe(model_name_or_path="org/name", model_revision=STEP))
    loaded = load_student(recipe.model).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(published / "checkpoint-100").state_dict().items():
        assert loaded[name].equal(weight), name


def upload(hub, repo_id, revision, folder):
    """A folder as a branch of a repository that may be new."""
    repository = hub.repositories.get(("model", repo_id)) or hub.create("model", repo_id, False)
    files = {path.name: hub.store(path.read_bytes()) for path in folder.iterdir()}
    repository.commit(revision, {**repository.find("main").files, **files}, "by hand")


@pytest.mark.slow
def test_an_adapter_comes_back_on_the_revision_of_its_base(hub, api, tmp_path, tokenizer, write_recipe):
    """Base at `v2`, adapters of two steps: trained on, evaluated, merged, and loaded as its card says."""
    for seed, revision in ((7, "v2"), (8, "main")):
        save(seed, tokenizer, tmp_path / revision)
        upload(hub, "org/base", revision, tmp_path / revision)
    fields = {"model_name_or_path": "org/base", "use_peft": True, "lora_r": 4, "lora_alpha": 8}
    recipe = load_recipe(write_recipe(**fields, model_revision="v2"))
    student, run, tokens = load_student(recipe.model), tmp_path / "run", torch.tensor([[5, 9, 30, 7]])
    expected = {}
    with torch.no_grad():
        for step, folder in ((100, run / "checkpoint-100"), (200, run)):
            torch.manual_seed(step)
            for name, parameter in student.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
            student.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
            expected[step] = student.eval()(input_ids=tokens).logits
            if folder != run:
                mark_complete(folder)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.resolved()))
    publish_run(run, Target("org/lora", merge=True), api, Pace(0.1, 0.5, 3.0))
    about = json.loads(hub.files("org/lora", STEP)["adapter_config.json"])
    assert (about["base_model_name_or_path"], about["revision"]) == ("org/base", "v2")

    for revision, step in ((STEP, 100), ("main", 200), (None, 200)):
        fields |= {"model_name_or_path": "org/lora", "model_revision": revision}
        again = load_student(load_recipe(write_recipe(**fields)).model)
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(input_ids=tokens).logits, expected[step])
        assert {name for name, weight in again.named_parameters() if weight.requires_grad} == {
            name for name, _ in again.named_parameters() if "lora_" in name
        }
    checkpoint = resolve("org/lora", STEP)
    assert (checkpoint.base / "model.safetensors").read_bytes() == (tmp_path / "v2/model.safetensors").read_bytes()
    merged = AutoModelForCausalLM.from_pretrained(download(api, "org/lora-merged", STEP))
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=tokens).logits, expected[100], atol=1e-5, rtol=1e-5)

    card = hub.files("org/lora", STEP)["README.md"].decode()
    code = card.split("```python\n")[1].split("# vLLM")[0]
    code += f"import torch\nprint(model(input_ids=torch.tensor({tokens.tolist()})).logits.tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected[100])


def test_damage_and_gaps_are_found(hub, api, published, tmp_path):
    folder = download(api, "org/name", STEP)
    good = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").resolve().write_bytes(good[:-1] + b"!")  # the cache's own copy, same length
    assert (download(api, "org/name", STEP) / "model.safetensors").read_bytes() == good

    repository = hub.repositories["model", "org/name"]
    whole = repository.find(STEP).files
    repository.commit(STEP, {name: oid for name, oid in whole.items() if name != "tokenizer.json"}, "gap")
    with pytest.raises(RecipeError, match="not complete, tokenizer.json is missing"):
        download(api, "org/name", STEP, tmp_path / "a")
    save_file({}, tmp_path / "other.safetensors")
    other = (tmp_path / "other.safetensors").read_bytes()
    repository.commit(STEP, {**whole, "model.safetensors": hub.store(other)}, "other weights under our manifest")
    with pytest.raises(RecipeError, match="model.safetensors is missing or is not what was trained"):
        download(api, "org/name", STEP, tmp_path / "b")
    repository.branches["step-00000300"] = next(iter(repository.commits))  # an upload that has only begun
    with pytest.raises(RecipeError, match="not complete"):
        download(api, "org/name", "step-00000300", tmp_path / "c")
    missing = {revision.name: revision.missing for revision in list_revisions(api, "org/name")}
    assert missing["step-00000300"] == ["*.safetensors"] and missing["step-00000200"] == []
    oid = repository.find("step-00000200").files["model.safetensors"]
    hub.blobs[oid] = hub.blobs[oid][:-1] + b"!"
    with pytest.raises(RecipeError, match="model.safetensors arrives damaged"):
        download(api, "org/name", "step-00000200", tmp_path / "d")
    with pytest.raises(RecipeError, match="no such model repository"):
        download(api, "org/nothing")
    hub.fail(".", 50)
    with pytest.raises(RecipeError, match="the Hub is away"):
        download(api, "org/name")


@pytest.mark.parametrize("there", ["adapter_config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_weights_of_another_model_in_the_same_folder(api, published, tmp_path, there):
    """They would be loaded with those that come, or instead."""
    download(api, "org/name", STEP, tmp_path / "m")
    download(api, "org/name", "step-00000200", tmp_path / "m")  # the same files in another version
    (tmp_path / "m" / there).write_text("{}")
    with pytest.raises(RecipeError, match=f"--to: .*/m holds {there}, which org/name, revision {STEP} has not"):
        download(api, "org/name", STEP, tmp_path / "m")


@pytest.mark.parametrize("content", [b'{"files": {"model.safetensors": {"sha', b"[]", b'{"files": {"a": {}}}'])
def test_a_damaged_manifest_is_a_revision_that_is_not_complete(hub, api, published, tmp_path, content):
    repository = hub.repositories["model", "org/name"]
    repository.commit(STEP, {**repository.find(STEP).files, "manifest.json": hub.store(content)}, "damaged")
    with pytest.raises(RecipeError, match="not complete, manifest.json is missing or is not what was trained"):
        download(api, "org/name", STEP, tmp_path / "a")
    missing = {revision.name: revision.missing for revision in list_revisions(api, "org/name")}
    assert missing[STEP] == ["manifest.json"] and missing["step-00000200"] == []


def test_a_damaged_index_of_shards(hub, api, published, tmp_path):
    repository = hub.repositories["model", "org/name"]
    index = hub.store(b'{"weight_map": ')
    repository.commit(STEP, {**repository.find(STEP).files, "model.safetensors.index.json": index}, "damaged")
    with pytest.raises(RecipeError, match="not complete, model.safetensors.index.json .damaged. is missing"):
        download(api, "org/name", STEP, tmp_path / "a")


def test_a_disk_that_takes_no_more(hub, api, published, tmp_path):
    """By a limit on the size of any file, which is below that of the weights."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        for to in (None, tmp_path / "a"):
            with pytest.raises(RecipeError, match="org/name: cannot be written here .File too large.; make"):
                download(api, "org/name", STEP, to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    hub.requests.clear()
    with pytest.raises(RecipeError, match="--to: nothing can be written to .*config.json .File exists."):
        download(api, "org/name", STEP, published / "config.json")
    assert not hub.requests


def test_a_proxys_page_is_a_hub_that_is_away(hub, api, published, tmp_path):
    """Whatever it stands in the place of: what is known of the repository, its files' list, or a file."""
    for path in ("/api/models/org/name/revision", "/tree/", "/resolve/.*safetensors", "/refs"):
        fault = hub.fail(path, 50, status=200, page=b"<html>log in first</html>")
        with pytest.raises(RecipeError, match="org/name: the Hub is away|arrives damaged"):
            (list_revisions if path == "/refs" else download)(api, "org/name")
        fault.count = 0


def test_a_revision_that_moves_is_fetched_as_it_was(hub, api, published, monkeypatch):
    """Its branch gets other weights once its files were listed: what comes is what was listed, and is found again."""
    repository = hub.repositories["model", "org/name"]
    was, commit = hub.files("org/name", STEP), repository.branches[STEP]
    other = repository.find("step-00000200").files

    hub.requests = Watched("GET .*/tree/", lambda: repository.commit(STEP, other, "moved on"))
    folder = download(api, "org/name", STEP)
    assert hub.requests.then is None and folder.name == commit
    assert (folder / "model.safetensors").read_bytes() == was["model.safetensors"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert Path(snapshot_download("org/name", revision=STEP)) == folder  # by its name, without a network


@pytest.mark.parametrize("name", ["a/b/c", "org/a--b", "-", "org/a.git"])
def test_what_is_no_name_of_a_repository(hub, api, name):
    for read in (download, list_revisions):
        with pytest.raises(RecipeError, match=f"{name}: no name of a repository on the Hub; give it as org/name"):
            read(api, name)
    assert not hub.requests


def test_a_sweep_evaluates_each_complete_step_and_draws_them(hub, api, published, tmp_path):
    seen = []

    def evaluate(revision):
        seen.append(revision)
        folder = tmp_path / "evals" / "org--name" / revision
        evaluated(folder, revision, {"math500": task(len(seen) / 10, 0.01)})
        evaluated(folder / "earlier" / "qwen", revision, {"math500": task(0.9, 0.01)}, protocol="qwen")

    (tmp_path / "evals" / "other").mkdir(parents=True)
    (tmp_path / "evals" / "other" / "results.json").write_text("{}")
    hub.repositories["model", "org/name"].branches["step-00000300"] = next(
        iter(hub.repositories["model", "org/name"].commits)
    )
    results = sweep_steps(api, "org/name", tmp_path / "evals", evaluate)
    assert seen == [STEP, "step-00000200"]
    assert {step: content["tasks"]["math500"]["avg"] for step, content in results.items()} == {100: 0.1, 200: 0.2}
    assert plot_sweep(results, "org/name", tmp_path / "steps.png").stat().st_size > 10_000
    with pytest.raises(RecipeError, match=f"no results of {STEP} came out below"):
        sweep_steps(api, "org/name", tmp_path / "elsewhere", evaluate)
    hub.create("model", "org/empty", True)
    with pytest.raises(RecipeError, match="no step is published there"):
        sweep_steps(api, "org/empty", tmp_path / "evals", evaluate)


@pytest.mark.slow  # evaluates each step in a process of its own
def test_the_sweep_script_from_end_to_end(hub, published, monkeypatch, tmp_path):
    monkeypatch.setenv("MAKEFLAGS", "-o .venv/.evaluation")  # nothing is set up anew
    output = tmp_path / "out"
    words = [
        "TASKS=arithmetic",
        "LIMIT=4",
        "SAMPLES=2",
        "MAX_NEW_TOKENS=4",
        "BACKEND=transformers",
        f"OUTPUT={output}",
    ]
    done = script("sweep_checkpoints.py", "org/name", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    for step in (100, 200):
        content = json.loads((output / "org--name" / f"step-{step:08d}" / "results.json").read_text())
        scores = content["tasks"]["arithmetic"]
        assert (content["model"], scores["n"], scores["problems"]) == ("org/name", 2, 4)
        said = f"step {step}: arithmetic {scores['avg']:.1%} ± {1.96 * scores['stderr']:.1%}"
        assert said in done.stdout.splitlines()
    picture = output / "org--name-steps.png"
    assert f"picture: {picture}" in done.stdout and picture.read_bytes()[:4] == b"\x89PNG"

    for wrong in ("TASKS", "REVISION=main"):
        refused = script("sweep_checkpoints.py", "org/name", wrong)
        assert refused.returncode == 2 and refused.stderr.startswith(f"error: {wrong}: words after the model are")
    failed = script("sweep_checkpoints.py", "org/name", *words, "TASKS=nosuch")
    assert failed.returncode == 2 and f"error: {STEP}: the evaluation failed" in failed.stderr
