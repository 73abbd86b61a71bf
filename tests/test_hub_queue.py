"""What is queued goes up, whatever fails on the way: the Hub, the disk, an entry, another process.

No training here: a run is a folder with checkpoints of a few bytes.
"""

import errno
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from test_card import RECIPE
from transformers import AutoModelForCausalLM

from vopd_recipes.command.publish import main as publish
from vopd_recipes.files import mark_complete
from vopd_recipes.hub import Publisher, Target, check_write_access, publish_run
from vopd_recipes.hub.merge import merge
from vopd_recipes.hub.queue import Queue
from vopd_recipes.hub.upload import Pace, Uploader
from vopd_recipes.recipe import RecipeError, is_hub_id
from vopd_recipes.tiny import pair as tiny

PACE = Pace(first_wait=0.01, longest_wait=0.02, answer=3.0)
TARGET = Target("org/tiny")
STEP = "step-00000001"
SCRIPT = Path(__file__).parent.parent / "scripts" / "publish.py"


@pytest.fixture
def run(tmp_path):
    """One step."""
    save(tmp_path / "run", 1)
    return tmp_path / "run"


@pytest.fixture
def hurried(monkeypatch):
    """Waits of a second and more, of the Hub's client, take no time."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


def save(run, step, name="model.safetensors", **files):
    checkpoint = run / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / name).write_bytes(b"w%d" % step * 500)
    for other, content in files.items():
        (checkpoint / f"{other}.json").write_text(content)
    mark_complete(checkpoint)
    return checkpoint


def uploaded(hub, repo_id="org/tiny"):
    """Branches that hold weights."""
    branches = hub.repositories["model", repo_id].branches
    return {name for name in branches if any("safetensors" in path for path in hub.files(repo_id, name))}


# The Hub fails ---------------------------------------------------------------------------------------------------


def test_large_files_that_fail_for_longer_than_the_client_tries(hub, api, run, hurried, caplog):
    """The client gives up after six and hides why; ours goes on and says it, without the signed address."""
    hub.fail("PUT /lfs", 8)
    publish_run(run, TARGET, api, PACE)
    assert hub.files("org/tiny", STEP)["model.safetensors"] == b"w1" * 500
    said = [record.getMessage() for record in caplog.records if record.name.startswith("vopd_recipes")]
    assert "org/tiny: step-00000001 is not up yet: HTTP 503 injected" in said
    assert "/lfs/" not in "".join(said)


def test_a_page_of_html_is_a_hub_that_is_away(hub, api, run, caplog):
    """Of the route whose answer the client reads before its status, and of one whose status is well."""
    hub.fail("validate-yaml", 2, page=b"<html>Service Unavailable</html>")
    hub.fail("GET .*/refs", 1, status=200, page=b"<html>Log in to this network</html>")
    publish_run(run, TARGET, api, PACE)
    assert uploaded(hub) == {STEP} and "an answer that is no JSON" in caplog.text


def test_a_damaged_file_of_ours_is_no_hub_that_is_away(hub, api, run, caplog):
    """It does not keep the others waiting, and the command ends."""
    save(run, 2)
    queue = Queue(run)
    queue.add(run / "checkpoint-1", STEP, TARGET)
    (queue.entries()[0].files / "config.json").write_text("{")
    with pytest.raises(RecipeError, match="not on the Hub yet: step-00000001"):
        publish_run(run, TARGET, api, PACE)
    assert uploaded(hub) == {"step-00000002"} and "config.json is damaged; remove" in caplog.text


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"ratelimit": '"api";r=0;t=1'}])
def test_a_rate_limit_is_waited_for(hub, api, run, headers):
    """For the second that it asks for, not for the hundredth of ours."""
    times = []
    hub.fail("GET .*/refs", 1, status=429, headers=headers, then=lambda: times.append(time.monotonic()))
    hub.fail("GET .*/refs", 1, seconds=0.0, then=lambda: times.append(time.monotonic()))
    publish_run(run, TARGET, api, PACE)
    assert uploaded(hub) == {STEP} and 1.0 <= times[1] - times[0] < 3.0


def test_a_repository_that_has_become_another_type(hub, api, run, caplog):
    hub.create("dataset", "org/tiny", True)
    with pytest.raises(RecipeError, match="not on the Hub yet: step-00000001"):
        publish_run(run, TARGET, api, PACE)
    assert "is not up yet: hub_model_id: org/tiny is a dataset; name a model repository" in caplog.text


def test_what_a_person_has_added_stays(hub, api, run):
    """Of what we have put there before, what is no more is gone, and so are other weights."""
    checkpoint = save(run, 2, tokenizer="{}", added_tokens="{}")
    publish_run(run, TARGET, api, PACE)
    repository, step = hub.repositories["model", "org/tiny"], "step-00000002"
    assert "added_tokens.json" in hub.files("org/tiny", step)
    added = {name: hub.store(name.encode()) for name in ("LICENSE", "notes/a.md", "pytorch_model.bin", "b.index.json")}
    repository.commit(step, {**repository.find(step).files, **added}, "by hand")
    (checkpoint / "added_tokens.json").unlink()
    publish_run(run, TARGET, api, PACE)
    assert hub.files("org/tiny", step).keys() == {
        ".gitattributes", "LICENSE", "notes/a.md", "README.md", "manifest.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    commits = len(repository.commits)
    publish_run(run, TARGET, api, PACE)
    assert len(repository.commits) == commits


# Names and repositories ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", ["org/a--b", "org/x.git", "org/x..y", "org/x.", "org/" + 97 * "x"])
def test_names_that_the_client_sends_nowhere(repo_id):
    assert not is_hub_id(repo_id)
    with pytest.raises(RecipeError, match="can be no repository's name"):
        check_write_access(Target(repo_id))


@pytest.mark.parametrize(("length", "merge", "fits"), [(90, False, True), (91, False, False), (90, True, False)])
def test_the_names_of_results_and_merged_model_fit_too(length, merge, fits):
    """A name has 96 characters at most."""
    target = Target("org/" + length * "x", merge=merge)
    if fits:
        target.check_names()
    else:
        with pytest.raises(RecipeError, match="-evals'|-merged'"):
            target.check_names()


def test_a_check_that_breaks_is_not_a_hub_that_is_away(hub, monkeypatch, tmp_path, caplog):
    """A client that cannot be imported: training begins, and nobody is told to wait for the Hub."""
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('no client at https://signed/address')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check_write_access(TARGET)
    assert "could not be checked: ImportError: no client at …" in caplog.text and "away" not in caplog.text


def test_a_repository_that_is_public_already(hub, caplog):
    hub.create("model", "org/tiny", False)
    check_write_access(Target("org/tiny", private=False))
    assert not caplog.records
    check_write_access(TARGET)
    assert "org/tiny is there and is public: everyone can read" in caplog.text


# The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "recipe.yaml: holds no recipe"),
        (b"- a", "recipe.yaml: holds no recipe"),
        (b"a: [", "recipe.yaml: not YAML (while parsing"),
        (b"\xff", "recipe.yaml: not YAML ('utf-8' codec"),
        (b"seed: 1", "names no repository as hub_model_id"),
        (b"hub_model_id: org/tiny", "there is nothing to publish: no complete checkpoint, no final model, nothing"),
    ],
)
def test_what_is_no_run_to_publish_is_one_line(hub, tmp_path, capsys, content, message):
    """And no repository is made for it."""
    (tmp_path / "recipe.yaml").write_bytes(content)
    (tmp_path / "checkpoint-1").mkdir()  # one that was not written to its end
    with pytest.raises(SystemExit) as end:
        publish([str(tmp_path)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not hub.repositories and not (tmp_path / ".hub-queue").exists()


def test_what_waits_in_the_queue_is_something_to_publish(hub, api, run):
    Queue(run).add(run / "checkpoint-1", STEP, TARGET)
    shutil.rmtree(run / "checkpoint-1")
    publish_run(run, TARGET, api, PACE)
    assert uploaded(hub) == {STEP}
    with pytest.raises(RecipeError, match="there is nothing to publish"):
        publish_run(run, TARGET, api, PACE)


# The disk and the queue ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_an_entry_that_cannot_be_read_stops_nothing(hub, run, caplog, content):
    """Neither the others nor the end of the run; it is told once, and counts as not published."""
    save(run, 2)
    queue = Queue(run)
    queue.add(run / "checkpoint-1", "main", TARGET)
    (queue.entries()[0].folder / "entry.json").write_text(content)
    publisher = Publisher(run, TARGET, PACE)
    publisher.start()
    assert not publisher.close()
    assert uploaded(hub) == {STEP, "step-00000002"}
    assert "not on the Hub yet: .hub-queue/000001-main;" in caplog.text
    assert caplog.text.count("cannot be read") == 1


def test_the_run_does_not_end_by_its_queue(hub, run, caplog):
    """What cannot be listed, at the start and at the end, is not taken for an empty queue."""
    publisher = Publisher(run, TARGET, PACE)
    publisher.queue.folder.write_text("a file where the folder should be")
    publisher.start()
    assert "left is not queued for the Hub: File exists" in caplog.text
    assert not publisher.finish()
    assert "not on the Hub yet: nobody can tell what (Not a directory)" in caplog.text


def test_what_rotation_took_before_there_was_room_is_not_published(hub, run, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 8_000, 0))
    publisher = Publisher(run, TARGET, PACE)
    publisher.save(run / "checkpoint-1", 1)
    shutil.rmtree(run / "checkpoint-1")
    publisher.retry()
    assert not publisher.close()
    assert "never to be on the Hub, removed before there was room to queue: step-00000001" in caplog.text


def test_an_uploader_ends_while_another_process_has_the_queue(hub, run, caplog):
    """And the start leaves alone what that process is writing."""
    publisher = Publisher(run, TARGET, PACE)
    with Queue(run).lock():
        being_written = publisher.queue.folder / ".000001-main.tmp"
        being_written.mkdir()
        publisher.start()
        assert being_written.is_dir()
        start = time.monotonic()
        assert not publisher.close(wait=30.0)
        assert time.monotonic() - start < 10.0
    assert hub.requests == [] and "not on the Hub yet: step-00000001" in caplog.text
    publisher.start()
    assert not being_written.exists() and publisher.close()
    assert uploaded(hub) == {STEP}


def test_a_file_system_without_locks(hub, run, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    publisher = Publisher(run, TARGET, PACE)
    publisher.start()
    assert publisher.close() and uploaded(hub) == {STEP}
    assert "cannot be locked (No locks available): start no second uploader there" in caplog.text


def test_merging_that_is_turned_on_later_takes_the_earlier_steps(hub, tmp_path):
    """They are queued again, as they are not when nothing has changed."""
    save(tmp_path, 1, "adapter_model.safetensors")
    for target, again in [(Target("org/lora"), 1), (Target("org/lora"), 0), (Target("org/lora", merge=True), 1)]:
        publisher = Publisher(tmp_path, target, PACE)
        with Queue(tmp_path).lock():
            publisher.start()
            publisher.close()
        entries = publisher.queue.entries()
        assert [entry.target for entry in entries] == [target] * again
        for entry in entries:
            publisher.queue.discard(entry)


def test_a_merged_model_stays_only_while_the_hub_is_away(hub, api, run, hurried):
    """A refusal is tried again after another merge: its copy is as large as the base."""
    queue = Queue(run)
    queue.add(run / "checkpoint-1", STEP, Target("org/tiny", merge=True))
    (entry,) = queue.entries()
    record = json.loads((entry.folder / "entry.json").read_text())
    (entry.folder / "entry.json").write_text(json.dumps({**record, "base": ["org/base", None]}))
    merged = entry.folder / "merged" / "files"
    merged.mkdir(parents=True)
    (merged / "model.safetensors").write_bytes(b"merged")
    uploader = Uploader(queue, api, PACE)
    hub.fail("POST .*merged/commit/", 1)
    assert not uploader.attempt() and uploader.away and merged.is_dir()
    hub.fail("POST .*merged/commit/", 1, status=403)
    assert not uploader.attempt() and not uploader.away and not merged.parent.exists()


def test_merging_leaves_room_for_the_run(tmp_path, monkeypatch):
    """Twice the model has to be free; if not, nothing is written."""
    base, out = tmp_path / "base", tmp_path / "merged" / "files"
    model = tiny.tiny_qwen3(32, 1, seed=0)
    model.save_pretrained(base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    size = sum(weight.numel() * 4 for weight in AutoModelForCausalLM.from_pretrained(base).parameters())
    free = {"bytes": 2 * size - 1}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free["bytes"]))
    with pytest.raises(OSError, match="GB free, merging takes care"):
        merge(tmp_path / "adapter", out, str(base))
    assert not [*out.parent.iterdir()]
    free["bytes"] += 1
    merge(tmp_path / "adapter", out, str(base))
    assert (out / "model.safetensors").is_file()


def test_an_uploader_is_ended_with_its_merge(hub, tmp_path, monkeypatch):
    """Else it goes on filling the disk when the run is over."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/pid\nwait\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    publisher = Publisher(tmp_path / "run", TARGET, PACE)
    publisher.start()
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.01)
    publisher.close(wait=0.1)
    child = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    deadline = time.monotonic() + 5.0
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_uploader_is_small():
    """What it imports stands beside every training run; a picture's library comes when somebody draws."""
    code = (
        "import sys, vopd_recipes.hub.__main__\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "from vopd_recipes.hub import plot_sweep\n"
        "assert 'matplotlib' in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# As users have it ------------------------------------------------------------------------------------------------


@pytest.mark.slow  # two processes import the client
def test_no_xet_and_no_signed_address(hub, run, monkeypatch):
    """The uploader and the script upload over HTTP, which is what is bounded, and say no address of it."""
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    save(run, 2)
    (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "hub_model_id": "org/script"}))
    hub.fail("PUT /lfs", 1)
    code = (
        "import sys\nfrom pathlib import Path\nfrom vopd_recipes.hub import Publisher, Target\n"
        "publisher = Publisher(Path(sys.argv[1]), Target('org/run'))\npublisher.start()\nassert publisher.close()"
    )
    command = [sys.executable, "-c", code, str(run)]
    by_run = subprocess.run(command, capture_output=True, text=True)
    hub.fail("PUT /lfs", 1)
    hub.blobs = {name: content for name, content in hub.blobs.items() if name not in hub.large}
    by_script = subprocess.run([sys.executable, str(SCRIPT), str(run)], capture_output=True, text=True)
    for done, repo_id in ((by_run, "org/run"), (by_script, "org/script")):
        assert done.returncode == 0, done.stderr
        assert uploaded(hub, repo_id) == {STEP, "step-00000002"}
        assert "http" not in done.stderr and "requesting" not in done.stderr, done.stderr
    assert all(fault.count == 0 for fault in hub.faults)
    assert not [request for request in hub.requests if "xet" in request]


@pytest.mark.slow  # as many processes
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hub-model-id", "org/a--b"], "org/a--b"),
        (["--hub-model-id", "org/" + 93 * "x"], "can be no repository's name"),
        (["--hub-model-id", "org/tiny"], "cannot be queued for the Hub"),
    ],
)
def test_the_script_ends_with_one_line(hub, run, words, message):
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (run / "checkpoint-1" / "config.json").write_text("{")
    done = subprocess.run([sys.executable, str(SCRIPT), str(run), *words], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
