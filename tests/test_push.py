"""`PUSH=1`: what cannot be published is refused before a model is loaded, and a failed push hides nothing."""

import json

import pytest
from fake_hub import READER, WRITER
from huggingface_hub import HfApi
from test_evaluation import write_results

from evaluation.run import main
from vopd_recipes.hub.evaluations import published_results


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare", "a.json,b.json"], "PUSH: it publishes the results of a MODEL; COMPARE alone has none"),
        (["{folder}"], "is a folder; publish it by scripts/publish.py"),
        (["gpt2"], "PUSH: gpt2 is no model repository; name it as MODEL=org/name"),
        (["a/b/c"], "PUSH: a/b/c is no model repository"),
        (["org/a--b"], "PUSH: org/a--b is no model repository"),
        (["org/name", "--revision", "refs/pr/1"], "PUSH: revision refs/pr/1 cannot name a split"),
        (["org/name", "--limit", "2"], "PUSH: results of some questions are not published; leave out LIMIT or PUSH"),
        (["org/nothing"], "PUSH: org/nothing: no such model repository"),
        (["other/name"], "PUSH: this machine's token may not write to other/name: HTTP 403"),
        (["org/taken"], "PUSH: this machine's token may not write to org/taken: HTTP 403 injected"),
    ],
)
def test_refused_before_anything_is_evaluated(hub, tmp_path, capsys, words, message):
    for repo_id in ("org/name", "org/taken", "other/name"):
        hub.create("model", repo_id, False)
    hub.create("dataset", "org/taken-evals", False)
    hub.fail("GET .*/org/taken-evals/auth-check", 1, status=403)
    (tmp_path / "folder").mkdir()
    words = [word.format(folder=tmp_path / "folder") for word in words]
    output = tmp_path / "out"
    assert main([*words, "--push", "--tasks", "arithmetic", "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: PUSH: ") and message in line
    assert not output.exists() and not any("resolve" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (READER, "PUSH: the Hub token may only read; make one with write access"),
        ("hf_unknownunknown", "PUSH: this machine's token may not write to org/name: HTTP 401"),
        (None, "PUSH: no Hub token; log in with `hf auth login` or set HF_TOKEN"),
    ],
)
def test_a_token_that_may_not_write(hub, monkeypatch, tmp_path, capsys, token, message):
    hub.create("model", "org/name", False)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main(["org/name", "--push", "--output", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr().err
    assert message in captured and len(captured.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [ConnectionError("refused"), json.JSONDecodeError("no JSON", "<html>", 0)])
def test_a_hub_behind_a_proxy_that_fails(hub, monkeypatch, tmp_path, capsys, error):
    def fail(api, *words):
        raise error

    monkeypatch.setattr(HfApi, "whoami", fail)
    assert main(["org/name", "--push", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: PUSH: the Hub is away")


def test_a_silent_hub_is_waited_for_so_long_and_no_longer(hub, monkeypatch, tmp_path, capsys):
    hub.create("model", "org/name", False)
    hub.fail("GET /api/whoami", 1, seconds=5.0)
    monkeypatch.setattr("evaluation.push._ANSWER", 0.5)
    assert main(["org/name", "--push", "--output", str(tmp_path / "out")]) == 2
    assert "PUSH: the Hub is away (ReadTimeout" in capsys.readouterr().err


@pytest.mark.slow  # evaluates
def test_a_failed_push_hides_neither_failures_nor_the_comparison(hub, tiny_pair, tmp_path, capsys, monkeypatch):
    """Of two tasks one is unknown; then the Hub takes nothing; the comparison comes all the same. All without Xet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)  # as users have it
    files = {path.name: hub.store(path.read_bytes()) for path in tiny_pair.student.iterdir() if path.is_file()}
    repository = hub.create("model", "org/name", False)
    repository.commit("main", {**repository.find("main").files, **files}, "by hand")
    words = ["org/name", "--push", "--tasks", "arithmetic", "--samples", "1", "--max-new-tokens", "4"]
    words += ["--backend", "transformers", "--output", str(tmp_path / "out")]
    path = tmp_path / "out" / "org--name" / "main" / "results.json"
    cut = hub.fail("PUT /lfs", 50, status=403)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "error: PUSH: " in said and "resumes the push" in said and "/lfs/" not in said, said
    cut.count = 0
    hub.fail("POST .*datasets/.*/commit/", 1, status=500)
    assert main([*words, "--tasks", "arithmetic,nosuch", "--compare", str(path)]) == 1
    captured = capsys.readouterr()
    assert "error: nosuch: no such task" in captured.err
    assert "error: PUSH: HTTP 500 injected; the results are in" in captured.err and "publish.py" in captured.err
    assert f"results: {path}" in captured.out and "comparison.md" in captured.out

    assert not [request for request in hub.requests if "xet" in request]
    wrong = write_results(tmp_path / "wrong", "org/other", [1.0])  # no task in common
    assert main([*words, "--compare", str(wrong)]) == 2
    captured = capsys.readouterr()
    assert "published: org/name-evals, main" in captured.out and "no task in common" in captured.err
    known = published_results(HfApi(hub.url, WRITER), "org/name")
    assert known["main"].pop("weights").keys() == {"model.safetensors"}  # whose results they are
    assert known == {"main": json.loads(path.read_text())}
