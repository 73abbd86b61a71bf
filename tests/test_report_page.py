"""A report says what the runs' files say, whatever a model has written, and a real browser shows it whole.

The runs are real ones of the tiny pair, a few steps each.
"""

import html
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TinyPair
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from vopd_recipes.evidence.outcome import compared
from vopd_recipes.files import SCHEMA, RunError
from vopd_recipes.loss import Estimator
from vopd_recipes.models import load_student, load_teacher, load_tokenizer
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import load_recipe
from vopd_recipes.reporting import charts, completions
from vopd_recipes.reporting.escaping import escaped, visible
from vopd_recipes.reporting.page import report_page, write_report
from vopd_recipes.reporting.runs import group_runs, read_run, read_runs
from vopd_recipes.reporting.watch import watch_report
from vopd_recipes.training import VOPDTrainer, finish_run, start_run

ROOT = Path(__file__).parents[1]
HOSTILE = "</script><script>document.title='owned'</script>\x00\x1b[31m‮שלום\u2066<img src=x onerror=alert(1)>&amp;"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_pair: TinyPair, problem_folder: Path) -> dict[str, Path]:
    """vOPD with two seeds and OPD, four steps over a little more than an epoch: prompts come again."""
    folder = tmp_path_factory.mktemp("runs")
    base = {
        "model_name_or_path": str(tiny_pair.student),
        "teacher_model_name_or_path": str(tiny_pair.teacher),
        "dataset_name": str(problem_folder),
        "dataset_test_split": "test",
        "answer_column": "answer",
        "max_completion_length": 10,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "log_gradient_variance": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_on_start": True,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(base), encoding="utf-8")
    for name, baseline, seed in (("vopd-0", "value", 0), ("vopd-1", "value", 1), ("opd-0", "none", 0)):
        train(path, "--output_dir", str(folder / name), "--baseline", baseline, "--seed", str(seed))
    return {name: folder / name for name in ("vopd-0", "vopd-1", "opd-0")}


def train(path: Path, *words: str) -> None:
    """A run, as scripts/run_vopd.py does it."""
    recipe = load_recipe(path, list(words))
    tokenizer = load_tokenizer(recipe.model)
    prompts = build_prompts(read_rows(recipe.data, recipe.training.seed), recipe.data, tokenizer)
    trainer = VOPDTrainer(
        load_student(recipe.model),
        load_teacher(recipe.model),
        recipe.training,
        processing_class=tokenizer,
        train_dataset=prompts.train,
        eval_dataset=prompts.test,
    )
    start_run(recipe, trainer)
    trainer.train()
    finish_run(trainer)


@pytest.fixture
def copied(runs: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a run, to be damaged."""

    def copy(name: str = "vopd-0", to: str = "copy") -> Path:
        return Path(shutil.copytree(runs[name], tmp_path / to))

    return copy


def history(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


def logged(run: Path, name: str) -> list[float]:
    return [line[name] for line in history(run) if name in line]


class Outline(HTMLParser):
    """Elements with their attributes, and the text of each `<td>`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[str | None, str]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append((dict(attrs)["data-heading"], ""))
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._inside:
            heading, text = self.cells[-1]
            self.cells[-1] = (heading, text + data)


################
# What the page says
################


def test_the_table_has_the_numbers_of_the_logs(runs: dict[str, Path]) -> None:
    run = runs["opd-0"]
    cells = dict(Outline(report_page([run])).cells)
    accuracy, kl = logged(run, "eval_accuracy"), logged(run, "eval_reverse_kl")
    training = logged(run, "reverse_kl")
    parts = ("rollout", "sync", "train")
    seconds = [sum(line[f"time/{part}"] for part in parts) for line in history(run) if "loss" in line]
    assert cells["steps"] == "4"
    assert cells["accuracy, first"] == f"{accuracy[0]:.1%}".replace("%", " %")
    assert cells["held-out reverse KL, first"] == f"{kl[0]:.3f}"
    assert cells["held-out reverse KL, last"] == f"{kl[-1]:.3f}"
    assert cells["training reverse KL, last"] == f"{training[-1]:.3f}"
    assert cells["seconds a step"] == f"{median(seconds):.2f}"
    assert len(seconds) == 4
    variance, opd = fmean(logged(run, "gradient_variance/value")), fmean(logged(run, "gradient_variance/none"))
    assert cells["vOPD"] == f"{variance / opd:.2f}"
    assert cells["OPD"] == "1.00"


def test_seeds_are_one_method_with_mean_and_deviation(runs: dict[str, Path]) -> None:
    groups = group_runs(read_runs(list(runs.values())))
    assert [(group.label, len(group.runs)) for group in groups] == [("vOPD", 2), ("OPD", 1)]
    page = report_page(list(runs.values()))
    ends = [logged(runs[name], "eval_reverse_kl")[-1] for name in ("vopd-0", "vopd-1")]
    deviation = abs(ends[0] - ends[1]) / math.sqrt(2)
    shown = [text for heading, text in Outline(page).cells if heading == "held-out reverse KL, last"]
    assert shown[0] == f"{fmean(ends):.3f} ± {deviation:.3f}"
    assert shown[1:3] == [f"{end:.3f}" for end in ends]
    assert 'class="band c0"' in page
    assert 'class="band c0"' not in report_page([runs["vopd-0"], runs["opd-0"]])


def test_headers_and_what_differs(runs: dict[str, Path]) -> None:
    page = report_page([runs["vopd-0"], runs["opd-0"]])
    environment = json.loads((runs["vopd-0"] / "environment.json").read_text())
    recipe = yaml.safe_load((runs["vopd-0"] / "recipe.yaml").read_text())
    for fact in (
        recipe["model_name_or_path"],
        recipe["teacher_model_name_or_path"],
        f"torch {environment['packages']['torch']}",
        environment["devices"][0],
        "−(<i>r</i>(<i>y</i>) + KL(<i>p</i>‖<i>q</i>)) ∇ log <i>p</i>(<i>y</i>)",
        html.escape((runs["vopd-0"] / "recipe.yaml").read_text().strip()),
        "<h1>vOPD and OPD</h1>",
    ):
        assert fact in page
    assert ("vOPD", "value") in Outline(page).cells
    assert ("OPD", "none") in Outline(page).cells
    assert "baseline</code>" in page
    assert "output_dir</code>" not in page
    assert "Where the recipes differ" not in report_page([runs["vopd-0"]])


def test_recipes_of_one_method_are_told_apart(copied: Callable[..., Path]) -> None:
    folders = [copied(to="first"), copied(to="second"), copied(to="third")]
    rewrite_recipe(folders[1], learning_rate=2e-3)
    labels = [group.label for group in group_runs(read_runs(folders))]
    assert labels == ["vOPD (learning_rate 0.001)", "vOPD (learning_rate 0.002)"]
    rewrite_recipe(folders[2], of_another_version=True)
    labels = [group.label for group in group_runs(read_runs(folders))]
    assert labels == ["vOPD (first)", "vOPD (second)", "vOPD (third)"]


def rewrite_recipe(run: Path, **fields: object) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **fields}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"baseline": "none"}, "−r(y) ∇ log p(y)"),
        ({"baseline": "constant", "baseline_constant": 0.5}, "−(r(y) − 0.5) ∇ log p(y)"),
        ({}, "−(r(y) + KL(p‖q)) ∇ log p(y)"),
        ({"baseline": "value_topk", "support_top_k": 7, "support": "teacher"},
         "−(r(y) + KL(p‖q)) ∇ log p(y) on the teacher’s top 7"),
        ({"baseline": "optimal"}, "−(r(y) − E[r s] / E[s]) ∇ log p(y) s = ‖∇ log p‖²"),
        ({"divergence": "full"}, "∇ KL(p‖q)"),
        ({"divergence": "topk"}, "∇ KL(p‖q) on the student’s top 20"),
    ],
)  # fmt: skip
def test_every_estimator_has_its_equation(fields: dict[str, Any], expected: str) -> None:
    text = Estimator(**fields).html
    assert re.sub("<[^>]*>", "", text) == expected
    assert ('class="over"' in text) == ("top " in expected)


@pytest.fixture
def compared_runs(runs: dict[str, Path], tmp_path: Path) -> list[Path]:
    """A run of every method that is compared: copies of real ones, under recipes of their own."""
    folders = []
    for place, method in enumerate(compared().values()):
        folder = Path(shutil.copytree(runs[("vopd-0", "opd-0")[place % 2]], tmp_path / method.name))
        words = list(method.flags)
        rewrite_recipe(folder, **{name[2:]: yaml.safe_load(value) for name, value in zip(words[::2], words[1::2])})
        folders.append(folder)
    return folders


def test_every_one_of_many_methods_is_quoted(compared_runs: list[Path]) -> None:
    groups = group_runs(read_runs(compared_runs))
    assert len(groups) == len(compared()) == 13
    for _, written in completions.choose_completions(groups):
        assert {each.group for each in written} == set(range(13))
        assert [(each.step, each.group) for each in written] == sorted((each.step, each.group) for each in written)


def test_steps_are_spread_whatever_the_methods() -> None:
    places = [(index, step) for step in range(1, 11) for index in range(2)]
    assert completions._spread(places) == [(0, 1), (1, 1), (0, 5), (1, 5), (0, 10), (1, 10)]
    alone = [(0, step) for step in range(1, 101)]
    assert [step for _, step in completions._spread(alone)] == [1, 21, 41, 60, 80, 100]
    assert completions._spread([(index, step) for step in (1, 2) for index in range(9)]) == [
        (index, 2) for index in range(9)
    ]


def test_bold_is_the_estimator_that_trained(runs: dict[str, Path], copied: Callable[..., Path]) -> None:
    """OPD full and top-k have a baseline of `none` and are not OPD: no column is theirs."""
    bold = '<td class="number last" data-heading="OPD">'
    assert report_page([runs["opd-0"]]).count(bold) == 1
    for divergence in ("full", "topk"):
        run = copied(name="opd-0", to=divergence)
        rewrite_recipe(run, divergence=divergence)
        assert bold not in report_page([run])


def test_many_recipes_are_told_apart_line_by_line(compared_runs: list[Path]) -> None:
    page = report_page(compared_runs)
    assert ("divergence", "full") in Outline(page).cells
    assert ("baseline", "optimal") in Outline(page).cells
    assert "<thead><tr><th>method</th>" in page
    assert "<thead><tr><th>field</th>" not in page


def test_the_same_runs_make_the_same_page(runs: dict[str, Path]) -> None:
    assert report_page(list(runs.values())) == report_page(list(runs.values()))


################
# Tokens
################


def test_tokens_carry_their_text_colour_and_numbers(runs: dict[str, Path]) -> None:
    groups = group_runs(read_runs([runs["vopd-0"], runs["opd-0"]]))
    chosen = completions.choose_completions(groups)
    assert len(chosen) == completions.PROMPTS
    prompt, written = chosen[0]
    assert {each.group for each in written} == {0, 1}
    assert len({each.step for each in written}) == 2  # once in each epoch
    for each in written:
        rows = pq.read_table(each.run.folder / "completions" / f"step-{each.step:08d}.parquet").to_pylist()
        assert each.row in rows
        assert each.row["prompt"] == prompt
        tokenizer = completions.load_tokenizer(each.run)
        assert tokenizer is not None
        spans = [
            attributes
            for tag, attributes in Outline(completions.coloured(each.row, tokenizer)).elements
            if tag == "span" and (attributes["class"] or "").startswith("t")
        ]
        assert len(spans) == len(each.row["token_ids"])
        assert "".join(completions.pieces(tokenizer, each.row["token_ids"])) == each.row["completion"]
        for index, span in enumerate(spans):
            advantage = each.row["advantage"][index]
            level = round(9 * math.sqrt(min(abs(advantage), 3) / 3))
            assert span["class"] == "t" + (f" {'u' if advantage > 0 else 'd'}{level}" if level else "")
            for name, label in (("reward", "reward"), ("advantage", "advantage"), ("reverse_kl", "reverse KL")):
                assert f"{label}\t{each.row[name][index]:.3f}".replace("-", "−") in (span["title"] or "").split("\n")


def test_a_typical_prompt_is_beside_the_worst(runs: dict[str, Path], copied: Callable[..., Path]) -> None:
    """By the mean |advantage| of the tokens: the middle of all prompts, then the largest."""
    run = copied()
    for path in (run / "completions").iterdir():  # each prompt differs by its own number from all others
        rows = [{**row, "advantage": [row["prompt_id"] / 100]} for row in pq.read_table(path).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    chosen = completions.choose_completions(group_runs(read_runs([run])))
    found = [written[0].row["prompt_id"] for _, written in chosen]
    steps = {len(written) for _, written in chosen}
    assert len(steps) == 1 and found[0] < found[3] < found[2] < found[1]
    page = report_page([run])
    assert page.count("<h3>A typical prompt</h3>") == page.count("<h3>Among the worst: 3</h3>") == 1
    assert page.index("A typical prompt") < page.index("Among the worst: 1")


def test_pieces_of_any_bytes_are_the_decoded_text(tokenizer: PreTrainedTokenizerFast) -> None:
    backend = tokenizer.backend_tokenizer
    draw = random.Random(0)
    for text in ("für 🙂 שלום", "�", "naïve\n\tx"):
        ids = backend.encode(text).ids
        found = completions.pieces(backend, ids)
        assert len(found) == len(ids)
        assert "".join(found) == text
    broken = backend.encode("🙂€").ids  # in another order these bytes are beginnings and ends of characters
    for _ in range(50):
        ids = [draw.choice((draw.randrange(257), *broken)) for _ in range(draw.randrange(1, 12))]
        found = completions.pieces(backend, ids)
        assert len(found) == len(ids)
        assert "".join(found) == backend.decode(ids, skip_special_tokens=False)


def test_words_keep_their_spaces() -> None:
    """A word-level token decoded alone loses the space in front of it."""
    words = {"▁the": 0, "▁cat": 1, "s": 2, "<unk>": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    assert backend.decode([1]) == "cat"
    assert completions.pieces(backend, [0, 1, 2, 1]) == ["the", " cat", "s", " cat"]


def test_completions_that_were_not_trained_on(runs: dict[str, Path], tokenizer: PreTrainedTokenizerFast) -> None:
    row = {
        "token_ids": tokenizer("ABC")["input_ids"],
        "completion": "ABC",
        "rollout_logprobs": [-1.0, -2.0, -3.0],
        "reward": None,
        "advantage": [float("nan"), None, 1.0],
        "reverse_kl": [0.5],
    }
    text = completions.coloured(row, completions.load_tokenizer(read_run(runs["vopd-0"])))
    assert 'class="t" title="“A”&#10;reverse KL\t0.500&#10;log p\t−1.000">A<' in text
    assert 'class="t" title="“B”&#10;log p\t−2.000">B<' in text
    assert 'class="t u5"' in text
    assert completions.coloured({**row, "completion": "<b>"}, None) == "&lt;b&gt;"


################
# Hostile text, and bounds
################


def test_invisible_characters_are_spelt_out() -> None:
    assert visible("a\x00\x1b‮b\u200b\ud800\ufeff") == "a␀␛⟨U+202E⟩b⟨U+200B⟩⟨U+D800⟩⟨U+FEFF⟩"
    assert visible("שלום 👩\u200d🔬 für\n\t") == "שלום 👩\u200d🔬 für\n\t"
    assert escaped("<a href='x'>&\"") == "&lt;a href=&#x27;x&#x27;&gt;&amp;&quot;"
    assert escaped("x" * 300, 10) == "x" * 10 + "…"
    for code in (*range(32), *range(127, 160), 0xFFFE, 0x202E, 0xE0041):
        if chr(code) not in "\n\t":
            assert chr(code) not in escaped(chr(code))


def hostile(run: Path, tokens: int = 0) -> Path:
    """Every completion and name in a run's files becomes an attack; with `tokens`, completions that long."""
    encode = Tokenizer.from_file(str(run / "tokenizer.json")).encode
    content = [*encode(HOSTILE).ids, *encode("🙂").ids[2:], 256]  # bytes that are no character before the end
    ids = (content * (tokens // len(content) + 1))[:tokens] if tokens else content
    for path in (run / "completions").iterdir():
        rows = [
            {
                **row,
                "prompt": HOSTILE * (1 + tokens // 100),
                "completion": HOSTILE,
                "token_ids": ids,
                **dict.fromkeys(("reward", "advantage", "reverse_kl"), [0.5 - index % 2 for index in range(len(ids))]),
                "rollout_logprobs": [-1.0] * len(ids),
            }
            for row in pq.read_table(path).to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    rewrite_recipe(run, model_name_or_path=HOSTILE, teacher_model_name_or_path="<b>x", seed="</script>", more=HOSTILE)
    environment = {"devices": [HOSTILE], "packages": {"torch": HOSTILE}, "git_revision": HOSTILE, "processes": "<b>"}
    (run / "environment.json").write_text(json.dumps(environment))
    return run.rename(run.with_name('"><img src=x onerror=alert(1)>'))


def test_nothing_in_a_run_is_markup(runs: dict[str, Path], copied: Callable[..., Path]) -> None:
    page = report_page([hostile(copied())])
    page.encode("utf-8")
    assert not any(character in page for character in "\x00\x1b\u202e\u2066")
    assert "שלום" in page
    tags = [tag for tag, _ in Outline(page).elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert "b" not in [tag for tag, attributes in Outline(page).elements if "onerror" in attributes]
    assert set(tags) == {tag for tag, _ in Outline(report_page([runs["vopd-0"]])).elements}


def test_a_page_is_bounded(copied: Callable[..., Path]) -> None:
    page = report_page([hostile(copied(), tokens=20_000)])
    assert len(page.encode()) < 2_000_000
    assert "… 19,600 more tokens" in page
    shown = page.count('<span class="t')
    assert shown <= completions.PROMPTS * completions.COMPLETIONS * completions.TOKENS + 2
    assert f"{completions.TOKENS} tokens of a completion" in page


def test_a_page_loads_nothing(runs: dict[str, Path]) -> None:
    page = report_page(list(runs.values()))
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-[\w+/]+=*'; script-src 'sha256-", page)
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "url(" not in page
    assert "@import" not in page


################
# Charts
################


def test_round_axis_marks() -> None:
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(0.03, 0.29) == pytest.approx([0, 0.1, 0.2, 0.3])
    for low, high in ((3.0, 3.0), (0.0, 0.0), (-5.0, -1.0), (1e-9, 2e-9), (-3.0, 1e6)):
        marks = charts.ticks(low, high)
        assert marks[0] <= low + 1e-12
        assert marks[-1] >= high - 1e-12
        assert 2 <= len(marks) <= 8
    assert [charts.number(value) for value in (0, 0.25, 1200, 1e-6, -2.5, 1e6)] == [
        "0", "0.25", "1,200", "1e−06", "−2.5", "1e+06",
    ]  # fmt: skip
    assert charts.number(0.5, percent=True) == "50 %"


def test_lines_are_where_their_values_are() -> None:
    points = {0: 1.0, 10: 0.0, 20: 0.25}
    svg = charts.line_chart("a", [charts.Line("x", points, 0, "trend")])
    (drawn,) = re.findall(r'<polyline class="trend c0" data-label="x" points="([^"]*)"', svg)
    places = [tuple(map(float, pair.split(","))) for pair in drawn.split()]
    (frame,) = re.findall('data-frame="([^"]*)"', svg)
    first, last, low, high, left, right, top, bottom = map(float, frame.split())
    assert (first, last, low, high) == (0, 20, 0, 1)
    for (step, value), (x, y) in zip(points.items(), places):
        assert x == pytest.approx(left + (right - left) * step / 20, abs=0.06)
        assert y == pytest.approx(bottom - (bottom - top) * value, abs=0.06)
    assert charts.line_chart("a", [charts.Line("x", {}, 0, "raw")]) == ""
    assert "<circle" in charts.line_chart("a", [charts.Line("x", {5: 2.0}, 0, "trend")])


def test_long_series_are_thinned_and_smoothed() -> None:
    points = {step: float(step % 2) for step in range(100_001)}
    thin = charts.thinned(points)
    assert len(thin) <= charts.MOST_POINTS + 1
    assert {0, 100_000} <= thin.keys()
    smooth = charts.smoothed({step: float(step) for step in range(10)}, 3)
    assert smooth == pytest.approx({0: 0.5, **{step: step for step in range(1, 9)}, 9: 8.5})
    assert charts.smoothed(points, 1) == points


def test_bars_add_up() -> None:
    page = charts.bar_chart("", ("a", "b"), [("x", {"a": 1.0, "b": 3.0}), ("y", {"a": 2.0})])
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', page)]
    assert widths == pytest.approx([250, 750, 500])
    assert charts.bar_chart("", ("a",), []) == ""


def test_values_that_are_not_finite_are_left_out(copied: Callable[..., Path]) -> None:
    run = copied()
    lines = history(run)
    for line in lines:
        if "grad_norm" in line:
            line["grad_norm"] = float("nan") if line["step"] < 3 else "text" if line["step"] == 3 else 2.0
    (run / "trainer_state.json").write_text(json.dumps({"global_step": 4, "log_history": lines}))
    assert read_run(run).series("grad_norm") == {4: 2.0}
    page = report_page([run])
    (drawn,) = re.findall('aria-label="Gradient norm".*?<circle [^>]*cx="([^"]*)" cy="([^"]*)"', page)
    assert all(math.isfinite(float(place)) for place in drawn)
    assert "inf," not in page
    assert "nan," not in page


################
# Folders
################


def test_an_unfinished_run_is_read_at_its_last_whole_checkpoint(copied: Callable[..., Path]) -> None:
    run = copied()
    (run / "trainer_state.json").unlink()
    assert "unfinished: step 4 of 4" in report_page([run])
    (run / "checkpoint-4" / "complete").unlink()
    page = report_page([run])
    assert "unfinished: step 2 of 4" in page
    assert {int(step) for step in re.findall(r"</b> step (\d+) ", page)} <= {1, 2}
    (run / "checkpoint-2" / "complete").unlink()
    with pytest.raises(RunError, match="no trainer_state.json and no complete checkpoint yet"):
        report_page([run])


REFRESHES = '<meta http-equiv="refresh" content="1">'


def unfinished(run: Path, lines: int) -> list[str]:
    """Back to where so many lines were logged and nothing was saved; returns the lines after them."""
    (run / "trainer_state.json").rename(run / "state-of-the-end.json")
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    logged = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(logged[:lines]))
    return logged[lines:]


def test_a_run_that_is_followed_is_read_at_its_last_log_line(copied: Callable[..., Path]) -> None:
    run = copied()
    before = history(run)
    rest = unfinished(run, 2)  # the evaluation at the start, and the first step
    with (run / "metrics.jsonl").open("a") as file:
        file.write(rest[0][:20])  # is being written
    found = read_run(run, live=True)
    assert (found.step, found.planned, found.finished) == (1, 4, False)
    assert found.history == before[:2]
    page = report_page([run], live=True, refresh=1)
    assert "unfinished: step 1 of 4" in page and REFRESHES in page and "live, anew every 1 s" in page
    assert {int(step) for step in re.findall(r"</b> step (\d+) ", page)} == {1}
    assert '<span class="t' in page  # by the tokenizer of the student that it started from
    assert "refresh" not in report_page([run], live=True)
    rewrite_recipe(run, max_steps=-1, model_name_or_path="org/name")
    page = report_page([run], live=True)
    assert "unfinished: step 1 ·" in page
    with pytest.raises(RunError, match="no complete checkpoint yet"):
        read_run(run)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="metrics.jsonl: log_history is empty; the run has logged nothing"):
        read_run(run, live=True)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what another thread or process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_page_follows_a_run_to_its_end(copied: Callable[..., Path], tmp_path: Path) -> None:
    run, path, said = copied(), tmp_path / "live.html", []
    rest = unfinished(run, 0)
    watching = threading.Thread(target=watch_report, args=([run], path, 1, said.append))
    watching.start()
    until(lambda: len(said) == 1)
    assert said[0].startswith("waiting: ") and "the run has logged nothing" in said[0] and not path.exists()
    for count, step in ((2, 1), (2, 2)):  # an evaluation is a line, too
        with (run / "metrics.jsonl").open("a") as file:
            file.write("".join(rest[:count]))
        rest = rest[count:]
        until(lambda step=step: path.is_file() and f"unfinished: step {step} of 4" in path.read_text("utf-8"))
        assert REFRESHES in path.read_text("utf-8")
    (run / "state-of-the-end.json").rename(run / "trainer_state.json")
    watching.join(timeout=60)
    assert not watching.is_alive()
    assert path.read_text("utf-8") == report_page([run])
    assert said[1:] == [f"{path}: open it; it is renewed every 1 s until the runs have finished"]


@pytest.mark.slow  # a process that imports everything: Ctrl-C is a signal
def test_an_interrupt_ends_watching_quietly(copied: Callable[..., Path], tmp_path: Path) -> None:
    run = copied()
    unfinished(run, 2)
    words = [sys.executable, ROOT / "scripts" / "report.py", run, "--watch", "--every", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("report.html: open it")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "unfinished: step 1 of 4" in page and "refresh" not in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.yaml", None, "not a run .no recipe.yaml in it.; name the output_dir of a run"),
        ("recipe.yaml", "a: [", "recipe.yaml: not YAML"),
        ("recipe.yaml", "- a", "recipe.yaml: holds a list, not named values"),
        ("recipe.yaml", "divergence: half", "recipe.yaml: divergence: 'half' is not one of"),
        ("recipe.yaml", "!!python/object/apply:os.system [true]", "recipe.yaml: not YAML"),
        ("recipe.yaml", "baseline_constant: one", "recipe.yaml: baseline_constant is no number: 'one'"),
        ("trainer_state.json", "{", "trainer_state.json: not JSON"),
        ("trainer_state.json", "[]", "trainer_state.json: holds a list"),
        ("trainer_state.json", "{}", "log_history is not a list"),
        ("trainer_state.json", '{"log_history": []}', "log_history is empty; the run has logged nothing"),
        ("trainer_state.json", '{"log_history": [{"loss": 1}]}', "log_history is not a list of log lines"),
        (
            "trainer_state.json",
            '{"global_step": "x", "log_history": [{"step": 1}]}',
            "trainer_state.json: global_step is no number of steps: 'x'",
        ),
        ("environment.json", "\xff", "environment.json: cannot be read"),
        ("environment.json", "3", "environment.json: holds a int"),
        ("completions/step-00000002.parquet", "PAR1", "step-00000002.parquet: not a file of completions"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer"),
    ],
)
def test_what_is_no_run_is_said_in_one_line(
    copied: Callable[..., Path], name: str, content: str | None, message: str
) -> None:
    run = copied()
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=message) as caught:
        report_page([run])
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)


def test_optional_files_may_be_missing(copied: Callable[..., Path]) -> None:
    run = copied()
    (run / "environment.json").unlink()
    (run / "tokenizer.json").unlink()
    assert "<div class=text>" in report_page([run])
    shutil.rmtree(run / "completions")
    assert "<h2>Completions" not in report_page([run])


def test_the_samples_of_a_held_out_prompt_are_the_recipes(copied: Callable[..., Path]) -> None:
    """A recipe from before there could be several says nothing of them."""
    one, several = copied(to="one"), copied(to="several")
    recipe = yaml.safe_load((one / "recipe.yaml").read_text())
    del recipe["num_generations_eval"]
    (one / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (several / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "num_generations_eval": 4}))
    for runs, said in (([one], "one sample"), ([several], "4 samples"), ([one, several], "1 to 4 samples")):
        assert f"(nats per token) are of {said} for each held-out prompt." in report_page(runs)


def test_runs_of_one_name_and_a_run_named_twice(copied: Callable[..., Path]) -> None:
    folders = [copied(to="a/run"), copied(to="b/run")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]
    assert len(read_runs([folders[0], folders[0] / ".." / "run"])) == 1


def test_a_link_to_itself_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "run")
    with pytest.raises(RunError, match="run: no such folder; name the output_dir of a run"):
        read_runs([tmp_path / "run"])


@pytest.mark.slow  # two processes that import everything: exit status and message are what scripts build on
def test_the_command(runs: dict[str, Path], tmp_path: Path) -> None:
    def command(*words: object) -> subprocess.CompletedProcess:
        script = ROOT / "scripts" / "report.py"
        return subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, cwd=tmp_path)

    done = command(*runs.values())
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report_page(list(runs.values()))
    failed = command(runs["opd-0"], tmp_path / "nowhere", "--output", tmp_path / "other.html")
    assert failed.returncode == 2
    assert failed.stderr == f"error: {tmp_path / 'nowhere'}: no such folder; name the output_dir of a run\n"
    assert not (tmp_path / "other.html").exists()


def test_a_place_that_takes_no_page(tmp_path: Path) -> None:
    """Before a run is read, also by who follows one."""
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a folder; name the file to write"):
        write_report([tmp_path / "nowhere"], tmp_path)
    message = (
        f"--output: {tmp_path}/file/a.html: nothing can be written to {tmp_path}/file .File exists.; name another"
    )
    for write in (write_report, partial(watch_report, seconds=1, say=print)):
        with pytest.raises(RunError, match=message):
            write([tmp_path / "nowhere"], tmp_path / "file" / "a.html")


def test_a_summary_of_a_run_that_logged_nothing(copied: Callable[..., Path]) -> None:
    run = copied()
    (run / "trainer_state.json").write_text('{"log_history": []}')
    words = [sys.executable, ROOT / "scripts" / "summarize.py", run]
    failed = subprocess.run(words, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr == f"error: {run}: its log history is empty; the run has logged nothing to report\n"


################
# In a real browser: nothing else knows what a page looks like
################


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium; without one the tests are skipped, or fail where VOPD_REQUIRE_BROWSER=1 (CI)."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        reason = "no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
        (pytest.fail if os.environ.get("VOPD_REQUIRE_BROWSER") == "1" else pytest.skip)(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


# How far the page can be scrolled sideways, in pixels.
SIDEWAYS = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


def show(browser: Any, path: Path, width: int, scheme: str = "light") -> None:
    """Open a page in a window of that width."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
    browser.get(path.as_uri())


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_whole(browser: Any, runs: dict[str, Path], tmp_path: Path, width: int) -> None:
    path = write_report(list(runs.values()), tmp_path / "report.html")
    show(browser, path, width)
    assert browser.get_log("browser") == []
    assert browser.execute_script(SIDEWAYS) == 0
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    pictures = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(svg => "
        "[svg.getBoundingClientRect().width, svg.getBBox().width, svg.getBBox().height])"
    )
    assert len(pictures) == 6 + 2 + 3  # curves, variance, time
    for shown, drawn, height in pictures:
        assert 250 < shown <= width
        assert drawn > 250
        assert height > 0
    outside = browser.execute_script(
        "const width = document.documentElement.clientWidth; "
        "const box = element => element.getBoundingClientRect(); return [...document.querySelectorAll('main *')]"
        ".filter(one => box(one).left < -0.5 || box(one).right > width + 0.5).map(one => one.outerHTML)"
    )
    assert outside == []
    broken = browser.execute_script(  # a word of a table's heading, or a short value beside it
        "const range = document.createRange(); const lines = one => { range.selectNodeContents(one);"
        "return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size };"
        "return [...document.querySelectorAll('thead th.number, td > span')].filter(one => one.offsetParent"
        " && lines(one) > 1 && !one.textContent.includes(' ') && one.textContent.length < 9).map(one => one.outerHTML)"
    )
    assert broken == []
    widths = "return [...document.querySelectorAll('.completion')].map(one => one.clientWidth)"
    assert all(250 < shown < width - 40 for shown in browser.execute_script(widths))  # beside or below each other


def test_a_browser_breaks_no_word_of_many_methods(browser: Any, compared_runs: list[Path], tmp_path: Path) -> None:
    """Many columns broke the words of what differs: a field's name stands on one line, and so does a value."""
    show(browser, write_report(compared_runs, tmp_path / "report.html"), 1280)
    assert browser.execute_script(SIDEWAYS) == 0
    lines = browser.execute_script(
        "const height = one => one.getBoundingClientRect().height / parseFloat(getComputedStyle(one).lineHeight);"
        "const table = [...document.querySelectorAll('h3')].find(h => h.textContent.startsWith('Where')).nextSibling;"
        "return [...table.querySelectorAll('code, td span')].map(height)"
    )
    assert len(lines) > 9 and max(lines) < 1.5


def test_a_browser_runs_nothing_that_a_model_wrote(browser: Any, copied: Callable[..., Path], tmp_path: Path) -> None:
    path = write_report([hostile(copied())], tmp_path / "report.html")
    for width in (1280, 400):
        show(browser, path, width)
        assert browser.title == "vOPD"
        assert browser.get_log("browser") == []
        assert browser.execute_script("return document.querySelectorAll('script, img').length") == 1
        assert browser.execute_script(SIDEWAYS) == 0
    text = browser.execute_script("return document.querySelector('.completion .text').textContent").replace("▫", "")
    assert text.startswith(visible(HOSTILE))
    assert text.endswith("��<|endoftext|>")


def test_a_browser_refuses_a_script_that_got_in(browser: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_report([runs["opd-0"]], tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    path.write_text(page.replace("<main>", "<main><script>document.title='owned'</script>"), encoding="utf-8")
    show(browser, path, 1280)
    assert browser.title == "OPD"
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_a_browser_loads_a_live_page_again(browser: Any, copied: Callable[..., Path], tmp_path: Path) -> None:
    run, path = copied(), tmp_path / "report.html"
    rest = unfinished(run, 2)
    show(browser, write_report([run], path, live=True, refresh=1), 1280)
    browser.execute_script("scrollTo(0, 400)")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(rest))
    write_report([run], path, live=True)
    until(lambda: "unfinished: step 4 of 4" in browser.page_source)
    assert browser.get_log("browser") == []  # its policy lets it
    until(lambda: browser.execute_script("return scrollY") == 400)  # nobody loses the place


def hover(browser: Any, element: Any, right: int = 0) -> None:
    """Point at an element, so far right of its middle."""
    from selenium.webdriver import ActionChains

    browser.execute_async_script(
        "arguments[0].scrollIntoView({block: 'center'}); requestAnimationFrame(() => setTimeout(arguments[1]))",
        element,
    )
    ActionChains(browser).move_to_element_with_offset(element, right, 0).perform()


def test_hovering_tells_a_tokens_numbers(browser: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    show(browser, write_report([runs["vopd-0"], runs["opd-0"]], tmp_path / "report.html"), 1280)
    _, written = completions.choose_completions(group_runs(read_runs([runs["vopd-0"], runs["opd-0"]])))[0]
    token = browser.find_element(By.CSS_SELECTOR, ".completion .t")
    hover(browser, token)
    told = browser.find_element(By.ID, "tip").text
    for name, label in (("reward", "reward"), ("advantage", "advantage"), ("reverse_kl", "reverse KL")):
        assert re.search(rf"{label}\s+{re.escape(completions.signed(written[0].row[name][0]))}", told), told

    chart = browser.find_element(By.CSS_SELECTOR, "svg.chart[aria-label^='Gradient norm']")
    hover(browser, chart, right=165)
    told = browser.find_element(By.ID, "tip").text
    last = logged(runs["vopd-0"], "grad_norm")[-1]
    assert told.startswith("step 4")
    assert float(re.findall(r"vOPD\s+([\d.]+)", told)[0]) == pytest.approx(last, rel=0.02)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_scheme(browser: Any, runs: dict[str, Path], tmp_path: Path, scheme: str) -> None:
    """Contrast as WCAG 2 defines it: 4.5 for text, on every shade of a token too; 3 for lines."""
    show(browser, write_report([runs["vopd-0"]], tmp_path / "report.html"), 1280, scheme)
    colours = browser.execute_script(
        """
        const probe = document.createElement('span'); document.querySelector('.completion .text').append(probe);
        const style = name => { probe.className = name; return getComputedStyle(probe) };
        const found = {ground: getComputedStyle(document.documentElement).backgroundColor,
            paper: getComputedStyle(document.querySelector('article')).backgroundColor, ink: style('t').color,
            muted: style('muted').color};
        for (let n = 0; n < arguments[0]; n++) found['c' + n] = style('c' + n).color;
        for (let n = 1; n < 10; n++) for (const way of 'ud') found[way + n] = style('t ' + way + n).backgroundColor;
        return found""",
        charts.COLOURS,
    )
    ground, paper = rgba(colours["ground"]), rgba(colours["paper"])
    assert (luminance(ground) < 0.05) == (scheme == "dark")
    for behind in (ground, paper):
        assert contrast(rgba(colours["ink"]), behind) > 10
        assert contrast(rgba(colours["muted"]), behind) > 4.5
        assert all(contrast(rgba(colours[f"c{number}"]), behind) > 3 for number in range(charts.COLOURS))
    lines = {colours[f"c{number}"] for number in range(charts.COLOURS)}
    assert len(lines) == charts.COLOURS == len(compared())  # a colour for each
    for way in "ud":
        shades = [blended(rgba(colours[f"{way}{level}"]), paper) for level in range(1, 10)]
        assert all(contrast(rgba(colours["ink"]), shade) > 4.5 for shade in shades)
        steps = [contrast(shade, paper) for shade in shades]
        assert steps == sorted(steps)
    assert blended(rgba(colours["u9"]), paper)[2] > blended(rgba(colours["d9"]), paper)[2] + 50  # blue and orange


Colour = tuple[float, ...]


def rgba(text: str) -> Colour:
    return tuple(map(float, re.findall(r"[\d.]+", text)))


def blended(above: Colour, below: Colour) -> Colour:
    alpha = above[3] if len(above) > 3 else 1.0
    return tuple(alpha * a + (1 - alpha) * b for a, b in zip(above[:3], below[:3]))


def luminance(colour: Colour) -> float:
    linear = [x / 12.92 if (x := part / 255) <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: Colour, second: Colour) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
