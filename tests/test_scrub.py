"""What may leave this machine: private text is taken out, the rest stays as it is."""

import json
import os
import pwd
import shutil

import pytest
import yaml

from vopd_recipes.hub.queue import Queue, Target
from vopd_recipes.hub.scrub import scrub, scrub_file


@pytest.fixture
def alice(monkeypatch, tmp_path):
    """A user whose name is all over her machine."""
    home = tmp_path / "home" / "alicesmith"
    (home / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "alicesmith")
    monkeypatch.chdir(home / "project")
    return home


def test_private_text_is_taken_out_and_the_rest_left_alone(tmp_path, monkeypatch):
    home = tmp_path / "home" / "alicesmith"
    (home / "project" / "data" / "student").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "alicesmith")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.chdir(home / "project")
    assert scrub(
        {
            "model_name_or_path": "data/student",
            "teacher_model_name_or_path": f"{home}/models/teacher",
            "dataset_name": "org/prompts",
            "dataset_mixture": [{"dataset_name": "~/sets/b", "weight": 0.5}],
            "deepspeed": str(home / "project" / "zero2.json"),
            "run_name": "alicesmith-7",
            "output_dir": "data/alicesmith/run",
            "prompt_template": "/think {problem}\nSee the root of /home/bob/notes and hf_abcdefghijklmn",
            "note": "key 0123456789abcdef",
            "resume": None,
        }
    ) == {
        "model_name_or_path": "./data/student",
        "teacher_model_name_or_path": "./teacher",
        "dataset_name": "org/prompts",
        "dataset_mixture": [{"dataset_name": "./b", "weight": 0.5}],
        "deepspeed": "./zero2.json",
        "run_name": "user-7",
        "output_dir": "data/user/run",
        "prompt_template": "/think {problem}\nSee the root of notes and [removed]",
        "note": "key [removed]",
        "resume": None,
    }
    untouched = b'{"b": 1.50, "a": "1/2 and \\u00e9"}'
    assert scrub_file(untouched, "config.json") is untouched
    assert json.loads(scrub_file(b'{"x": "/etc/models/y"}', "config.json")) == {"x": "./y"}
    shutil.rmtree(home)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://alicesmith:s3cretpw@10.0.0.3:8000", "http://10.0.0.3:8000"),
        ("see https://s3cr@et@host/a and ssh://git@host:7/b", "see https://host/a and ssh://host:7/b"),
        ("http://host/a@b?to=me@c", "http://host/a@b?to=me@c"),
        ("../alicesmith/zero.json", "./zero.json"),
        ("data/alicesmith/x.json", "data/user/x.json"),
        ("--config=data/of_alicesmith/x.json --fast", "--config=data/of_user/x.json --fast"),
        ("file:///scratch/alicesmith/x", "./x"),
        ("at file:///scratch/alicesmith/x now", "at file:///scratch/user/x now"),
        ("/alicesmith", "/user"),
        ("/home/alice smith/run", "./run"),
        ("from /home/alice smith/run on", "from run on"),
        ("in /Users/bob and there", "in  and there"),
        ("key sk-proj-abcDEF0123456789abcDEF", "key [removed]"),
        ("sk-" + "aB3" * 16, "[removed]"),
        ("ghp_" + "aB3" * 12, "[removed]"),
        ("url?key=github_pat_" + "aB3_" * 20, "url?key=[removed]"),
        ("AKIAIOSFODNN7EXAMPLE", "[removed]"),
        # what stays
        ("risk-averse and task-specific-instruction-following-2024", None),
        ("sk-learn-like-estimators-and-such", None),
        ("<think>\n</think>\n{% if user %}</alicesmith>", None),
        ("alicesmith is a name, 1/2 a number", None),
        ("Solve x/2 = 3 at home/work: {problem}", None),
        ("malicesmith/alicesmithson", None),
    ],
)
def test_every_text_is_searched(alice, text, left):
    assert scrub({"note": text}) == {"note": text if left is None else left}


@pytest.mark.parametrize("field", ["model_name_or_path", "hub_model_id", "model", "prepared_from", "source"])
def test_a_hub_id_keeps_its_owner(alice, field):
    assert scrub({field: ["alicesmith/model"]}) == {field: ["alicesmith/model"]}
    assert scrub({field: "data/alicesmith/model"}) == {field: "data/user/model"}


def test_names_are_searched_as_values_are(alice):
    before = {"sets": {f"{alice}/project/a": 1, "/scratch/alicesmith/b": 2, "x hf_abcdefghijklmn": 3, 4: 5}}
    assert scrub(before) == {"sets": {"./a": 1, "./b": 2, "x [removed]": 3, 4: 5}}


def test_a_user_without_a_name_can_publish(tmp_path, monkeypatch):
    """Containers run under any number: no entry in passwd, no HOME."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987654321)
    with pytest.raises(KeyError):
        pwd.getpwuid(os.getuid())
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    recipe = {"model_name_or_path": "~/models/x", "run_name": "seven", "output_dir": "/data/runs/x", "note": "a/b"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    entry = Queue(tmp_path).add(tmp_path, "main", Target("org/name"))
    assert yaml.safe_load((entry.files / "recipe.yaml").read_text()) == {
        "model_name_or_path": "./x", "run_name": "seven", "output_dir": "./x", "note": "a/b"
    }  # fmt: skip
