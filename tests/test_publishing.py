"""The commands themselves against a Hub that misbehaves: train and publish, publish again, evaluate, push the results.

Slow: every test starts the real training script, some of them on two processes. They are the only ones in which
recipe, launcher, trainer, uploader and the scripts meet.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import READER, WRITER, FakeHub
from huggingface_hub import HfApi
from launching import REPOSITORY, SCRIPT, launch
from test_card import metadata_of

from vopd_recipes.hub.download import list_revisions
from vopd_recipes.hub.evaluations import publishable_results, published_results, push_results

FIELDS = {"push_to_hub": True, "hub_model_id": "org/tiny", "save_steps": 1, "max_steps": 3}


def script(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def assert_published(hub: FakeHub, run: Path) -> None:
    """Every checkpoint and the final model, byte for byte, and nothing that is on no list."""
    sources = {f"step-{int(path.name[11:]):08d}": path for path in run.glob("checkpoint-*")} | {"main": run}
    repository = hub.repositories["model", "org/tiny"]
    assert repository.branches.keys() == sources.keys() and len(sources) == 4
    assert repository.private and repository.tags == {"v1": repository.branches["main"]}
    for revision, source in sources.items():
        files = hub.files("org/tiny", revision)
        manifest = json.loads(files["manifest.json"])["files"]
        assert {*manifest, "README.md", "manifest.json", ".gitattributes"} == files.keys()
        for name, entry in manifest.items():
            assert hashlib.sha256(files[name]).hexdigest() == entry["sha256"], (revision, name)
        for name in ("model.safetensors", "tokenizer.json", "trainer_state.json"):
            assert files[name] == (source / name).read_bytes(), (revision, name)
    assert not [complete for complete in list_revisions(HfApi(hub.url, WRITER), "org/tiny") if complete.missing]
    assert not (run / ".hub-queue").is_dir() or not [*(run / ".hub-queue").glob("[0-9]*")]
    assert WRITER.encode() not in b"\n".join(hub.received)


@pytest.mark.slow  # the whole way of a user, in the order of the README
def test_train_evaluate_and_push_the_results(hub, write_recipe, tmp_path):
    """An upload is cut off and an answer fails on the way; the numbers on the card are those of the results file."""
    hub.fail("PUT /lfs", 1, status=0)
    hub.fail("POST .*/commit/", 1)
    run = launch(write_recipe(**FIELDS), tmp_path / "run")
    if "not on the Hub yet" in run.output:
        assert script("publish.py", run.folder).returncode == 0
    assert all(fault.count == 0 for fault in hub.faults)
    assert_published(hub, run.folder)

    step = "step-00000002"
    words = ["--revision", step, "--tasks", "arithmetic", "--samples", 2, "--max-new-tokens", 4]
    words += ["--backend", "transformers", "--output", tmp_path / "evals"]
    evaluated = script("evaluate.py", "org/tiny", *words)
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    (path,) = (tmp_path / "evals").rglob("results.json")
    pushed = script("publish.py", path)
    assert pushed.returncode == 0 and f"results of org/tiny, {step}: published" in pushed.stdout, pushed.stderr
    content = json.loads(path.read_text())
    known = published_results(HfApi(hub.url, WRITER), "org/tiny")
    assert known[step].pop("weights").keys() == {"model.safetensors"}  # whose results they are
    assert known == {step: content}
    scores = content["tasks"]["arithmetic"]
    assert scores["n"] == 2 and content["revision"] == step
    card = hub.files("org/tiny", step)["README.md"].decode()
    metrics = metadata_of(card)["model-index"][0]["results"][0]["metrics"]
    assert {metric["name"]: metric["value"] for metric in metrics} == {
        f"{name}@2": round(100 * scores[name], 2) for name in ("avg", "pass", "maj")
    }
    on_main = hub.files("org/tiny", "main")["README.md"].decode()
    assert f"| `{step}` | Arithmetic (built in) |" in on_main and "model-index" not in metadata_of(on_main)
    repository, was = hub.repositories["model", "org/tiny"], hub.files("org/tiny", step)
    assert push_results(HfApi(hub.url, WRITER), publishable_results(path)) == step  # harmless
    assert hub.files("org/tiny", step) == was
    commits = len(repository.commits)
    assert script("publish.py", run.folder).returncode == 0  # harmless, and the results stay
    assert len(repository.commits) == commits


@pytest.mark.slow  # that one process of several publishes, and that a Hub which is gone fails neither
def test_two_processes_and_no_hub_then_one_command(hub, write_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    run = launch(write_recipe(**FIELDS), tmp_path / "run", processes=2, ddp_backend="gloo")
    assert run.environment["processes"] == 2
    assert run.output.count("the Hub is away") == 1 and run.output.count("not on the Hub yet") == 1
    assert not hub.requests
    assert len([*(run.folder / ".hub-queue").glob("[0-9]*")]) == 4
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    again = script("publish.py", run.folder)
    assert again.returncode == 0, again.stderr
    assert_published(hub, run.folder)


@pytest.mark.slow  # a whole process can vanish, and its machine with it
def test_training_killed_while_uploading_goes_on_with_the_same_command(hub, write_recipe, tmp_path):
    # the uploader needs a second or two to come to its first file: some sixty steps are left then
    recipe = write_recipe(**{**FIELDS, "save_steps": 30, "max_steps": 90, "max_completion_length": 24})
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(recipe), "--output_dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

    def kill_all() -> None:
        """The uploader, whose parent is the training, and the training."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [*map(int, children), process.pid]:
            os.kill(pid, signal.SIGKILL)

    hub.fail("PUT /lfs", 1, status=0, then=kill_all)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert ("model", "org/tiny") in hub.repositories and not (folder / "model.safetensors").exists()
    again = launch(recipe, folder)
    assert "not on the Hub yet" not in again.output, again.output
    assert_published(hub, folder)


@pytest.mark.slow  # starts the script
def test_a_token_that_may_not_write_is_refused_before_a_model_is_loaded(hub, write_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READER)
    recipe = write_recipe(**FIELDS, teacher_model_name_or_path=str(tmp_path / "no-such-teacher"))
    done = script("run_vopd.py", recipe)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: push_to_hub: the Hub token may only read")
    assert not (tmp_path / "run").exists() and not hub.repositories
