"""A run publishes itself to a Hub that misbehaves, and ends well; afterwards every revision is what was trained.

Slow, because everything is real: the trainer, the uploader process, the Hub's client, HTTP on loopback, and the waits
between retries. What it guards is the one thing that nobody can repeat, a long run's checkpoints.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import test_trainer
import torch
import yaml
from fake_hub import READER, WRITER
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vopd_recipes.hub import Publisher, Target, check_write_access, publish_run
from vopd_recipes.hub.queue import Queue
from vopd_recipes.hub.revisions import release_of
from vopd_recipes.hub.upload import Pace
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.training import TrainingStopped, VOPDTrainer, finish_run, publishing, start_run
from vopd_recipes.training import train as train_recipe

PACE = Pace(first_wait=0.1, longest_wait=0.5, answer=3.0)
TARGET = Target("org/tiny")
STEPS = ("step-00000001", "step-00000002", "step-00000003")
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    monkeypatch.setattr(test_trainer, "VOPDTrainer", RecordingTrainer)


class RecordingTrainer(VOPDTrainer):
    """Remembers what was in each checkpoint."""

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        step = self.state.global_step
        self.trained[f"step-{step:08d}"] = weights_hash(self.output_dir / f"checkpoint-{step}")


def weights_hash(folder):
    return hashlib.sha256(next(folder.glob("*model.safetensors")).read_bytes()).hexdigest()


def start_training(write_recipe, folder, target=TARGET, **fields):
    """A trainer of three steps, each saved."""
    fields = {"save_steps": 1, "max_steps": 3, "run_name": "alicesmith's run", **fields}
    fields |= {"push_to_hub": True, "hub_model_id": target.repo_id, "hub_merge": target.merge}
    trainer = test_trainer.build(write_recipe(output_dir=str(folder / "run"), **fields))
    trainer.trained = {}
    start_run(trainer.recipe, trainer)
    return trainer


def train(trainer, pace=PACE, trained=lambda: None) -> bool:
    """To the end; whether everything is up."""
    with publishing(trainer.recipe, trainer, pace):
        trainer.train()
        assert trainer.state.global_step == 3
        trained()
        finish_run(trainer)
        trainer.trained["main"] = weights_hash(trainer.output_dir)
    return not trainer.publisher.queue.entries()


def assert_complete(hub, trained, repo_id="org/tiny", weights="model.safetensors"):
    """Every revision holds its manifest's files, byte for byte, and the weights that were trained."""
    assert hub.repositories["model", repo_id].branches.keys() == trained.keys()
    for revision, sha256 in trained.items():
        files = hub.files(repo_id, revision)
        manifest = json.loads(files["manifest.json"])["files"]
        assert {*manifest, "README.md", "manifest.json", ".gitattributes"} == files.keys()
        assert {*manifest} >= {weights, "tokenizer.json", "tokenizer_config.json", "recipe.yaml", "trainer_state.json"}
        for name, entry in manifest.items():
            assert hashlib.sha256(files[name]).hexdigest() == entry["sha256"], (revision, name)
        assert manifest[weights]["sha256"] == sha256, revision
        assert json.loads(files["trainer_state.json"])["global_step"] == (
            3 if revision == "main" else int(revision[5:])
        )


def assert_nothing_private(hub, home):
    """In nothing that was ever sent."""
    sent = b"\n".join(hub.received)
    assert len(sent) > 100_000
    for secret in (WRITER, READER, "alicesmith", str(home), "optimizer.pt", "training_args", "rng_state"):
        assert secret.encode() not in sent, secret
    for (kind, repo_id), repository in hub.repositories.items():
        for revision in repository.branches:
            assert not [name for name in hub.files(repo_id, revision, kind) if name.endswith((".bin", ".pt", ".pth"))]


# A run and a Hub that works ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_is_a_branch_and_loads_as_one(hub, api, home, write_recipe):
    """Rotation keeps one checkpoint on disk; the Hub has all, and plain from_pretrained reads them."""
    trainer = start_training(write_recipe, home, save_total_limit=1)
    assert train(trainer)
    assert [path.name for path in trainer.output_dir.glob("checkpoint-*")] == ["checkpoint-3"]
    assert_complete(hub, trainer.trained)
    assert_nothing_private(hub, home)
    repository = hub.repositories["model", "org/tiny"]
    assert repository.private and repository.tags == {"v1": repository.branches["main"]}
    assert release_of(api, "org/tiny", "main") == "v1"
    recipe = yaml.safe_load(hub.files("org/tiny", "main")["recipe.yaml"])
    assert recipe["model_name_or_path"] == "./student" and recipe["run_name"] == "user's run"
    assert Queue(trainer.output_dir).entries() == []
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "import hashlib, sys\n"
        "model = AutoModelForCausalLM.from_pretrained('org/tiny', revision='step-00000002')\n"
        "tokenizer = AutoTokenizer.from_pretrained('org/tiny', revision='step-00000002')\n"
        "state = sorted(model.state_dict().items())\n"
        "weights = b''.join(tensor.numpy().tobytes() for _, tensor in state)\n"
        "print(hashlib.sha256(weights).hexdigest(), tokenizer('1+2=').input_ids)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    queued = Path(os.environ["HOME"]) / "step-2"
    queued.mkdir()
    for name, content in hub.files("org/tiny", "step-00000002").items():
        (queued / name).parent.mkdir(exist_ok=True)
        (queued / name).write_bytes(content)
    state = sorted(AutoModelForCausalLM.from_pretrained(queued).state_dict().items())
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for _, tensor in state)).hexdigest()
    assert done.stdout.split(" ", 1)[0] == digest
    assert done.stdout.split(" ", 1)[1].strip() == str(AutoTokenizer.from_pretrained(queued)("1+2=").input_ids)

    # Again, with everything that is still on disk: not one commit more.
    commits = len(repository.commits)
    assert commits == 5 and {commit.title for commit in repository.commits.values()} == {
        "initial commit", "step 1", "step 2", "step 3", "final model, step 3",
    }  # fmt: skip  # none by transformers' own pushing
    publish_run(trainer.output_dir, TARGET, api, PACE)
    assert len(repository.commits) == commits and repository.tags == {"v1": repository.branches["main"]}


@pytest.mark.slow
def test_lora_publishes_the_adapter_and_the_merged_model(hub, home, write_recipe):
    """The merged model is W + B A · scale to float32 rounding, and gives the adapted model's logits; a step's too."""
    target = Target("org/lora", merge=True)
    trainer = start_training(write_recipe, home, target, use_peft=True, lora_r=4, save_steps=3)
    assert train(trainer)
    assert_complete(hub, trainer.trained, "org/lora", "adapter_model.safetensors")
    assert_nothing_private(hub, home)
    config = json.loads(hub.files("org/lora", "main")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "./student"
    assert trainer.trained.keys() == {STEPS[2], "main"}
    files = hub.files("org/lora-merged", "main")
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert_complete(hub, {STEPS[2]: digest, "main": digest}, "org/lora-merged")  # the step is the last one
    assert "adapter_config.json" not in files and hub.repositories["model", "org/lora-merged"].private
    folder = home / "merged"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(files[name])
    merged = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=tokens).logits
        torch.testing.assert_close(merged(input_ids=tokens).logits, expected, atol=1e-4, rtol=1e-4)
        with trainer.model.disable_adapter():
            assert (trainer.model(input_ids=tokens).logits - expected).abs().max() > 1e-2
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


# Faults: training ends well, and after recovery everything is there --------------------------------------------------


def overloaded(hub):
    """503 for nine requests; then a rate limit that says when to come back."""
    hub.fail("GET .*/refs", 1, status=429, headers={"Retry-After": "1"})
    hub.fail("POST .*/commit/", 1, status=429, headers={"Retry-After": "1"})
    hub.fail(".", 9)


def cut_upload(hub):
    """The connection ends in the middle of a large file, twice."""
    hub.fail("PUT /lfs", 2, status=0)


def another_run(hub):
    """An answer that does not come, and another run's step with a shard and results that are not ours."""
    hub.fail("GET .*/refs", 1, seconds=4.0)
    repository = hub.create("model", "org/tiny", True)
    other = {"model-00001-of-00002.safetensors": hub.store(b"other"), ".eval_results/gpqa.yaml": hub.store(b"[]")}
    repository.commit("step-00000002", {**repository.find("main").files, **other}, "step 2 of another run")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [overloaded, cut_upload, another_run])
def test_what_passes_is_retried_while_training_goes_on(hub, home, write_recipe, fault):
    fault(hub)
    trainer = start_training(write_recipe, home, save_total_limit=1)
    complete = train(trainer)
    if not complete:  # the training was over before the fault was
        again = Publisher(trainer.output_dir, TARGET, PACE)
        again.start()
        deadline = time.monotonic() + 20
        while again.queue.entries() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert again.close()
    assert all(fault.count == 0 for fault in hub.faults)
    assert_complete(hub, trainer.trained)
    assert_nothing_private(hub, home)


@pytest.mark.slow
def test_training_does_not_wait_for_a_hub_that_is_silent(hub, home, write_recipe):
    """No request is answered before the last step; one answer would be waited for twice as long as all steps take."""
    answer = threading.Event()
    hub.fail(".", 100, then=lambda: answer.wait(180))
    start = time.monotonic()

    def trained():
        assert not answer.is_set() and time.monotonic() - start < 60
        hub.faults.clear()
        answer.set()

    assert train(start_training(write_recipe, home), Pace(0.1, 0.5, 120.0), trained)
    assert hub.requests


@pytest.mark.slow
def test_a_hub_that_is_down_all_the_time_and_a_token_that_is_wrong(hub, api, home, write_recipe, monkeypatch, caplog):
    """Nothing goes up, nothing is lost to rotation, and one command makes up for it."""
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    trainer = start_training(write_recipe, home, save_total_limit=1)
    start = time.monotonic()
    assert not train(trainer)
    assert time.monotonic() - start < 30
    assert "not on the Hub yet: step-00000001, step-00000002, step-00000003, main" in caplog.text
    assert ("model", "org/tiny") not in hub.repositories
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    down = Publisher(trainer.output_dir, TARGET, PACE)
    down.start()
    assert not down.close()
    assert len(down.queue.entries()) == 4
    publish_run(trainer.output_dir, TARGET, api, PACE)
    assert_complete(hub, trainer.trained)
    assert_nothing_private(hub, home)


@pytest.mark.slow
def test_a_finished_run_started_again_is_published(hub, home, write_recipe):
    """It is trained without a Hub; the same command with push_to_hub trains nothing and uploads every revision."""
    recipe = write_recipe(output_dir=str(home / "run"), save_steps=1, max_steps=3)
    train_recipe(load_recipe(recipe))
    folder = home / "run"
    trained = {step: weights_hash(folder / f"checkpoint-{i}") for i, step in enumerate(STEPS, 1)}
    completions = [path.stat().st_mtime_ns for path in sorted((folder / "completions").iterdir())]
    train_recipe(load_recipe(recipe, ["--push_to_hub", "--hub_model_id", TARGET.repo_id]))
    assert [path.stat().st_mtime_ns for path in sorted((folder / "completions").iterdir())] == completions
    assert_complete(hub, {**trained, "main": weights_hash(folder)})
    assert_nothing_private(hub, home)


@pytest.mark.slow
def test_killed_while_uploading(hub, home, write_recipe):
    """SIGKILL in the middle of a large file, of uploader and of a half-written entry: the next start finishes it."""
    trainer = start_training(write_recipe, home, save_total_limit=1)
    hub.fail("PUT /lfs", 1, status=0, then=lambda: os.kill(trainer.publisher._process.pid, signal.SIGKILL))
    trainer.publisher = Publisher(trainer.output_dir, TARGET, PACE)
    trainer.publisher.start()
    trainer.train()
    finish_run(trainer)
    trainer.trained["main"] = trainer.trained[STEPS[2]]
    while hub.faults[0].count:
        time.sleep(0.05)
    process = trainer.publisher._process
    process.kill()  # and the training with it: nobody finishes anything
    process.wait()
    (trainer.output_dir / "checkpoint-3" / "queued").unlink()  # as if killed after the save, before the queue
    for entry in trainer.publisher.queue.entries():
        if entry.revision == STEPS[2]:
            trainer.publisher.queue.discard(entry)
    half = trainer.publisher.queue.folder / ".000009-main.tmp" / "files"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    again = Publisher(trainer.output_dir, TARGET, PACE)
    again.start()
    assert again.finish()
    assert not half.exists()
    assert_complete(hub, trainer.trained)


@pytest.mark.slow
def test_a_full_disk_while_queuing(hub, home, write_recipe, monkeypatch, caplog):
    """The second save cannot be queued; it is with the third."""
    trainer = start_training(write_recipe, home)
    links, copy = [], os.link

    def full(source, target):
        links.append(target)
        if len(links) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(os, "link", full)
    assert train(trainer)
    assert "step-00000002 could not be queued for the Hub: No space left on device" in caplog.text
    assert_complete(hub, trainer.trained)


def test_the_queue_leaves_room_for_the_next_checkpoint(tmp_path, monkeypatch):
    checkpoint = tmp_path / "run" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"w" * 1000)
    (checkpoint / "optimizer.pt").write_bytes(b"o" * 2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 8_000, 2_500))
    with pytest.raises(OSError, match="the next checkpoint needs"):
        Queue(tmp_path / "run").check_room(checkpoint)
    (checkpoint / "optimizer.pt").unlink()
    Queue(tmp_path / "run").check_room(checkpoint)


def test_an_uploader_outlives_nobody(hub, tmp_path):
    """Its parent is gone without a word: one more attempt, and it ends."""
    (tmp_path / "run").mkdir()
    code = (
        "import os, subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-m', 'vopd_recipes.hub', sys.argv[1], '--pace', '1', '1', '1'],"
        " stdin=subprocess.PIPE, start_new_session=True)\nprint(p.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_that_stops_publishes_what_it_has_saved(hub, home, write_recipe):
    """And says why it stopped, not what became of the uploads; there is no final model."""
    trainer = start_training(write_recipe, home)
    with pytest.raises(TrainingStopped, match="not finite"), publishing(trainer.recipe, trainer, PACE):
        trainer.train()
        raise TrainingStopped("step 4: the loss or its gradient is not finite")
    assert hub.repositories["model", "org/tiny"].branches.keys() == {"main", *STEPS}
    assert "model.safetensors" not in hub.files("org/tiny", "main")
    assert trainer.publisher.queue.entries() == []


def test_what_could_not_be_queued_is_tried_around_every_rotation(hub, tmp_path, monkeypatch):
    """Before it, else an older checkpoint is gone; after it, when there may be room."""
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"w" * 1000)
    free = {"bytes": 0}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 8_000, free["bytes"]))
    publisher = Publisher(tmp_path, TARGET, PACE)
    publisher.save(checkpoint, 1)
    assert not (checkpoint / "queued").exists() and publisher.queue.entries() == []
    free["bytes"] = 5_000
    publisher.retry()
    shutil.rmtree(checkpoint)  # the next rotation takes it
    assert publisher.close()
    assert hub.files("org/tiny", "step-00000001")["model.safetensors"] == b"w" * 1000


# Before training -----------------------------------------------------------------------------------------------------


def test_a_token_that_may_write_makes_a_private_repository(hub):
    check_write_access(TARGET)
    assert hub.repositories["model", "org/tiny"].private
    check_write_access(TARGET)
    check_write_access(Target("org/open", private=False))
    assert not hub.repositories["model", "org/open"].private


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_wrongwrongwrong", "org/tiny", "the Hub does not know this token"),
        (READER, "org/tiny", "the Hub token may only read"),
        (WRITER, "elsewhere/tiny", "hub_model_id: the token may not write to elsewhere/tiny"),
        (WRITER, "elsewhere/there", "hub_model_id: the token may not write to elsewhere/there"),
        (WRITER, "org/prompts", "hub_model_id: org/prompts is a dataset; name a model repository"),
        ("", "org/tiny", "no Hub token"),
    ],
)
def test_what_cannot_work_is_refused_before_training(hub, monkeypatch, token, repo_id, message):
    hub.create("dataset", "org/prompts", True)
    hub.create("model", "elsewhere/there", False)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RecipeError, match=message):
        check_write_access(Target(repo_id))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"push_to_hub": True}, r"recipe.yaml:\d+: hub_model_id: missing"),
        ({"push_to_hub": True, "hub_model_id": "tiny"}, r"recipe.yaml:\d+: hub_model_id: 'tiny' is no repository"),
        ({"hub_merge": True, "use_peft": True}, r"recipe.yaml:\d+: hub_merge has no effect with push_to_hub: false"),
        (
            {"push_to_hub": True, "hub_model_id": "org/tiny", "hub_merge": True},
            r"recipe.yaml:\d+: hub_merge: only a LoRA run can be merged; set use_peft: true",
        ),
        ({"hub_strategy": "end"}, "hub_strategy is not supported"),
        ({"hub_always_push": True}, "hub_always_push is not supported"),
        ({"hub_revision": "x"}, "hub_revision is not supported"),
    ],
)
def test_recipes_that_cannot_be_published(write_recipe, fields, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(**fields))


@pytest.mark.parametrize(("hub_private_repo", "private"), [(None, True), (True, True), (False, False)])
def test_private_unless_the_recipe_says_otherwise(write_recipe, hub_private_repo, private):
    fields = {"push_to_hub": True, "hub_model_id": "org/tiny", "hub_private_repo": hub_private_repo}
    assert Target.of(load_recipe(write_recipe(**fields)).resolved()) == Target("org/tiny", private)


def test_the_merged_models_repository_is_checked_too(hub):
    hub.create("dataset", "org/tiny-merged", True)
    with pytest.raises(RecipeError, match="org/tiny-merged is a dataset"):
        check_write_access(Target("org/tiny", merge=True))


def test_a_hub_that_is_away_is_no_reason_not_to_train(hub, monkeypatch, caplog):
    hub.fail("whoami", 1)
    check_write_access(TARGET)
    hub.fail("whoami", 1, seconds=3.0)
    check_write_access(TARGET, answer=1.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_write_access(TARGET)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert "HTTP 503" in caplog.text and "ReadTimeout" in caplog.text and "HF_HUB_OFFLINE" in caplog.text
