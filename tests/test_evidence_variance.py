"""Measured variances meet the closed forms, sampled gradients have no bias, and the projection keeps lengths."""

import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM

from vopd_recipes.evidence.baselines import measure_baselines
from vopd_recipes.evidence.directions import DirectionProbe, measure_directions
from vopd_recipes.evidence.directions_report import write_directions
from vopd_recipes.evidence.gradients import METHODS, SAMPLED, GradientProbe
from vopd_recipes.evidence.intervals import with_interval
from vopd_recipes.evidence.measurement import check_measurable, load_checkpoint, measure_variance
from vopd_recipes.evidence.projection import Projection, layer_type, trained_leaves
from vopd_recipes.evidence.variance import VarianceStudy, bootstrap, summarize
from vopd_recipes.evidence.variance_report import variance_table
from vopd_recipes.loss import METHODS as TABLE
from vopd_recipes.loss import Estimator, reference_loss
from vopd_recipes.models import load_student, load_teacher
from vopd_recipes.packing import Sample, pack
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.teacher.local import completion_states

SCRIPT = Path(__file__).parents[1] / "scripts" / "measure_variance.py"
WIDE = 100_003  # wider than any layer type of the pair: nothing is lost


@pytest.fixture(scope="module", params=["tied", "untied"])
def measured(request, tmp_path_factory, tiny_pair, problem_folder):
    """32 draws of 16 completions by the tied student; by the untied teacher, with the student as its teacher."""
    models = [str(tiny_pair.student), str(tiny_pair.teacher)][:: 1 if request.param == "tied" else -1]
    path = tmp_path_factory.mktemp("variance") / "recipe.yaml"
    fields = {
        "model_name_or_path": models[0], "teacher_model_name_or_path": models[1], "dataset_name": str(problem_folder),
        "max_completion_length": 6, "per_device_train_batch_size": 16, "support_top_k": 3, "report_to": "none",
        "output_dir": str(path.parent / "run"), "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(fields))
    return measure_variance(load_recipe(path), None, draws=32, prompts=16, redraws=4)


def ratio(measured, name, which="conditional", kind="total"):
    return measured["methods"][name][which]["ratio"][kind]["value"]


def test_variances_are_ordered_as_the_closed_form_orders_them(measured):
    for kind in (*measured["parameters"], "total"):
        opd = ratio(measured, "none", kind=kind)
        assert opd == pytest.approx(1)
        assert ratio(measured, "optimal", kind=kind) <= 1.02 * ratio(measured, "value", kind=kind)
        assert ratio(measured, "value", kind=kind) < opd < ratio(measured, "constant", kind=kind)
    assert ratio(measured, "full", "total") < ratio(measured, "value", "total")


@pytest.mark.parametrize("name", SAMPLED)
def test_the_heads_variance_is_its_exact_prediction(measured, name):
    """An interval of 95 % misses once in twenty; half as wide again, once in three hundred."""
    head = measured["methods"][name]["head"]
    assert abs(head["value"] - 1) < 1.5 * (head["high"] - head["low"]) / 2
    assert head["high"] - head["low"] < 0.5


@pytest.mark.parametrize("name", SAMPLED)
def test_other_layers_vary_as_the_logits_do(measured, name):
    """No identity there, but the same Jacobians for all estimators: the ratio is the logits' within a quarter."""
    predicted = measured["methods"][name]["predicted"]["logits"]
    assert ratio(measured, name) == pytest.approx(predicted, rel=0.25)


def test_sampled_estimators_have_no_bias_and_topk_has_one(measured):
    """Estimates of a square that is zero fall on both sides of it: only an interval above zero would be a bias."""
    topk = measured["methods"]["topk"]["squared_bias"]
    for name in SAMPLED:
        bias = measured["methods"][name]["squared_bias"]["total"]
        assert bias["low"] < 0, name
        assert bias["value"] < topk["total"]["value"] / 2, name
    assert topk["total"]["low"] > 0.01
    assert all(bias["value"] > 0 for bias in topk.values())


def test_a_report_lists_every_estimator_and_layer_type(measured):
    text = variance_table(measured)
    for name in METHODS:
        assert text.count(f"| `{name}` |") == 2
    assert all(f" {kind} |" in text for kind in measured["parameters"])
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


# The gradients -------------------------------------------------------------------------------------------------------


def probe_and_batch(write_recipe, width=WIDE, redraws=1, **fields):
    """The pair's probe, and three fixed completions."""
    recipe = load_recipe(write_recipe(**fields))
    student, teacher = load_student(recipe.model).eval(), load_teacher(recipe.model)
    probe = GradientProbe(student, teacher, Estimator(support_top_k=3), seed=0, width=width, redraws=redraws)
    samples = [
        Sample(i, [72 + i, 101, 108], [108, 111 + i, 44, 32][: 4 - i], [0.0] * (4 - i), False) for i in range(3)
    ]
    return probe, student, teacher, samples


@pytest.mark.parametrize("swapped", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_is_the_dense_one_whatever_the_micro_batches(write_recipe, tiny_pair, name, swapped):
    """By layer type and in total, against autograd through each completion's own logits."""
    names = ("teacher_model_name_or_path", "model_name_or_path") if swapped else ("unused", "unused")
    fields = dict(zip(names, (str(tiny_pair.student), str(tiny_pair.teacher)))) if swapped else {}
    probe, student, teacher, samples = probe_and_batch(write_recipe, **fields)
    (row,) = (row for row in TABLE.values() if row.key == name)
    estimator = Estimator(row.divergence, row.baseline, support_top_k=3)
    tokens = sum(len(sample.completion_ids) for sample in samples)
    loss = 0.0
    for sample in samples:
        row = torch.tensor([sample.prompt_ids + sample.completion_ids])
        first = len(sample.prompt_ids) - 1
        ours, theirs = (model(row).logits[0, first:-1] for model in (student, teacher))
        loss = (
            loss
            + reference_loss(
                ours, theirs, row[0, first + 1 :], estimator, token_weights=torch.full((len(ours),), 1 / tokens)
            )[0]
        )
    loss.backward()
    for batches in (pack(samples, 1), pack(samples, 2)):
        found = probe.measure(batches, torch.Generator().manual_seed(0))
        squares = probe.projection.inner(found.own[name], found.own[name])
        whole = sum(parameter.grad.double().square().sum() for parameter in student.parameters())
        torch.testing.assert_close(squares[-1], whole, rtol=1e-4, atol=1e-10)
        for kind in ("attention", "mlp", "norm", *(["head"] if swapped else [])):
            expected = sum(
                parameter.grad.double().square().sum()
                for key, parameter in student.named_parameters()
                if ("head" if key == "lm_head.weight" else layer_type(key)) == kind
            )
            actual = squares[probe.projection.layer_types.index(kind)]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-10)


def test_redrawn_tokens_have_the_mean_of_the_full_gradient(write_recipe):
    """Many draws at the same three contexts: the mean error shrinks as the root of their number says."""
    probe, *_, samples = probe_and_batch(write_recipe, width=1009)
    generator, batches = torch.Generator().manual_seed(0), pack(samples, 1)
    draws = [probe.measure(batches, generator) for _ in range(40)]
    for name in SAMPLED:
        errors = torch.stack([draw.redrawn[name] - draw.own["full"] for draw in draws])  # [draws, redraws, …]
        mean_square = probe.projection.inner(errors, errors)[..., -1].mean()
        mean = errors.mean((0, 1))
        assert probe.projection.inner(mean, mean)[-1] < 3 * mean_square / errors[:, :, 0, 0].numel()
        predicted = draws[0].logit_variance[name]
        assert predicted == pytest.approx(draws[-1].logit_variance[name], rel=1e-6)  # the tokens do not enter


def test_redraws_spread_over_the_distribution(write_recipe):
    """Of R redraws token v takes the share p(v) to within one; over many contexts each redraw is a fair sample."""
    probe, student, _, samples = probe_and_batch(write_recipe, redraws=7)
    (batch,) = pack(samples, 1)
    with torch.no_grad():
        hidden = completion_states(student, batch)[:1]
        p = student.lm_head(hidden)[0].double().softmax(-1)
    drawn = probe._draw(hidden.expand(4000, -1), torch.Generator().manual_seed(0))
    assert drawn.shape == (7, 4000)
    counts = torch.nn.functional.one_hot(drawn, len(p)).sum(0)  # [contexts, V]
    assert (counts - 7 * p).abs().max() < 1 + 1e-6
    frequencies = torch.nn.functional.one_hot(drawn, len(p)).double().mean(1)  # [redraws, V]
    assert (frequencies - p).abs().max() < 5 * (0.25 / 4000) ** 0.5


def test_redraws_narrow_the_interval_of_the_bias(measured):
    """Four of them against the rollout's own tokens: half the width, or nearly."""

    def width(kind):
        intervals = [measured["methods"][name][kind]["total"] for name in SAMPLED]
        return sum(interval["high"] - interval["low"] for interval in intervals)

    assert width("squared_bias") < 0.7 * width("squared_bias_own")


def test_the_exact_prediction_of_a_head_with_a_bias(write_recipe):
    """Σ (‖h‖² + 1) V: without the bias' share it falls short of what is measured."""
    recipe = load_recipe(write_recipe())
    student, teacher = load_student(recipe.model).eval(), load_teacher(recipe.model)
    head = torch.nn.Linear(student.config.hidden_size, student.config.vocab_size)
    with torch.no_grad():
        head.weight.copy_(8 * student.lm_head.weight)
        student.model.norm.weight.div_(8)  # a short input: its square is not much more than the bias' 1
    student.lm_head = head
    probe = GradientProbe(student, teacher, Estimator(support_top_k=3), seed=0, width=WIDE)
    assert probe.head_is_exact
    generator, batches = torch.Generator().manual_seed(0), pack(probe_and_batch(write_recipe)[-1], 1)
    draws = [probe.measure(batches, generator) for _ in range(12)]
    place = probe.projection.layer_types.index("head")
    for name in SAMPLED:
        errors = torch.stack([draw.redrawn[name] - draw.own["full"] for draw in draws])
        measured = probe.projection.inner(errors, errors)[..., place].mean().item()
        assert measured == pytest.approx(draws[0].head_variance[name], rel=0.3), name


def test_lora_gradients_are_those_of_the_adapters(write_recipe, tmp_path):
    recipe = load_recipe(write_recipe(use_peft=True, lora_r=2))
    student, teacher = load_student(recipe.model), load_teacher(recipe.model)
    probe = GradientProbe(student.eval(), teacher, Estimator(), seed=0)
    assert probe.projection.layer_types == ["attention", "mlp"]
    assert not probe.head_is_exact
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert sum(probe.projection.parameters.values()) == trained
    student.save_pretrained(tmp_path / "adapter")
    again = load_checkpoint(recipe.model, tmp_path / "adapter")
    assert sum(parameter.numel() for parameter in again.parameters() if parameter.requires_grad) == trained
    other = replace(recipe.model, model_name_or_path=recipe.model.teacher_model_name_or_path)
    with pytest.raises(
        RecipeError, match=r"--checkpoint: the adapter of .*adapter cannot be put on .*teacher: "
    ) as said:
        load_checkpoint(other, tmp_path / "adapter")
    assert "\n" not in str(said.value)


# The projection ------------------------------------------------------------------------------------------------------


def test_a_projection_keeps_inner_products(write_recipe):
    """Narrow, over many signs: right in the mean, and scattered by √(2/K)."""
    model = load_student(load_recipe(write_recipe()).model)
    leaves, _ = trained_leaves(model)
    torch.manual_seed(0)
    left, right = ([torch.randn_like(leaf.tensor) for leaf in leaves] for _ in range(2))
    exact = Projection(leaves, seed=0, width=WIDE)
    one, two = exact(left), exact(left) + exact(right)
    squares, products = exact.inner(one, one), exact.inner(one, two)
    narrow = []
    for seed in range(60):
        projection = Projection(leaves, seed, width=211)
        narrow.append(projection.inner(projection(left), projection(left)) / squares)
    narrow = torch.stack(narrow)
    deviation = (2 / 211) ** 0.5
    assert (narrow.mean(0) - 1).abs().max() < 4 * deviation / 60**0.5
    assert narrow.std(0).max() < 1.5 * deviation
    torch.testing.assert_close(products[-1], squares[-1] + exact.inner(one, exact(right))[-1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"), ("transformer.wte.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "attention"), ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight", "mlp"),
        ("model.layers.0.mlp.experts.3.down_proj.weight", "mlp"), ("transformer.h.0.ln_1.weight", "norm"),
        ("model.norm.weight", "norm"), ("something.else", "other"),
    ],
)  # fmt: skip
def test_layer_types(name, kind):
    assert layer_type(name) == kind


# The statistics ------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_draws(write_recipe):
    """But for the scalars of each draw: six of variance per sampled method and layer type, three predictions."""
    probe, *_, samples = probe_and_batch(write_recipe, width=1009)
    study, generator = VarianceStudy(probe.projection), torch.Generator().manual_seed(0)
    kept = []
    for _ in range(20):
        study.add(probe.measure(pack(samples, 1), generator))
        kept.append(sum(blocks.numel() for blocks in study._blocks.values()))
    assert len(set(kept)) == 1
    scalars = sum(row.numel() for rows in study._pairs.values() for row in rows)
    assert scalars / 20 < len(METHODS) * 15
    assert study._previous is None  # the twentieth draw completed a pair


def test_intervals():
    rows = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (mean,) = bootstrap(rows)
    half = 1.9659 * rows.std().item() / 20
    assert (mean.low, mean.high) == pytest.approx((mean.value - half, mean.value + half), abs=0.02)
    (same,) = bootstrap(3 * rows.abs(), rows.abs())
    assert (same.value, same.low, same.high) == pytest.approx((3, 3, 3))
    few = rows[:6, 0].tolist()
    half = 2.5706 * statistics.stdev(few) / 6**0.5  # Student's t; percentiles of six are a third narrower
    (mean,) = bootstrap(rows[:6])
    assert (mean.low, mean.high) == pytest.approx((mean.value - half, mean.value + half), abs=1e-4)
    assert bootstrap(rows[:2])[0].low is None and with_interval(vars(bootstrap(rows[:1] * 0 + 2)[0])) == "2.00"


def test_layers_that_the_loss_does_not_reach_have_no_ratio(write_recipe):
    """Everything is finite, so that it can be written."""
    recipe = load_recipe(write_recipe())
    student, teacher = load_student(recipe.model), load_teacher(recipe.model)
    student.requires_grad_(False)
    lora = get_peft_model(student, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    for name, parameter in lora.named_parameters():
        parameter.requires_grad_("q_proj" in name and "lora_A" in name or "up_proj" in name)  # B is zero: A has none
    probe = GradientProbe(lora.eval(), teacher, Estimator(), seed=0)
    study, generator = VarianceStudy(probe.projection), torch.Generator().manual_seed(0)
    samples = probe_and_batch(write_recipe)[-1]
    for _ in range(4):
        study.add(probe.measure(pack(samples, 1), generator))
    found = summarize(study, probe.head_is_exact)
    assert found["methods"]["value"]["conditional"]["ratio"]["attention"]["value"] == 0
    assert found["methods"]["value"]["conditional"]["ratio"]["mlp"]["value"] > 0
    json.dumps(found, allow_nan=False)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"draws": 1}, "--draws: 1: .* an even number, 4 or more"),
        ({}, {"draws": 7}, "--draws: 7: .* pairs of draws"),
        ({}, {"prompts": 0}, "--prompts must be at least 1"),
        ({}, {"redraws": 0}, "--redraws must be at least 1"),
        ({}, {"checkpoint": Path("nowhere")}, "--checkpoint: nowhere holds no model"),
        ({"reward_clip_lambda": 0.1}, {}, r"recipe.yaml:\d+: reward_clip_lambda: 0.1 changes the mean"),
        ({"temperature": 0.7, "allow_biased_sampling": True}, {}, "allow_biased_sampling: True changes the mean"),
        (
            {
                "teacher_backend": "server", "teacher_server_url": "http://127.0.0.1:1", "baseline": "none",
                "teacher_model_name_or_path": None,
            },
            {},
            "teacher_backend: server .* whole distribution",
        ),
    ],
    ids=["one draw", "odd draws", "no prompts", "no redraws", "no checkpoint", "clipped", "biased", "server"],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(write_recipe, fields, options, message):
    settings = {"checkpoint": None, "draws": 4, "prompts": 2, **options}
    with pytest.raises(RecipeError, match=message):
        check_measurable(load_recipe(write_recipe(**fields)), **settings)


def test_a_teacher_that_is_the_student_is_refused(write_recipe, tiny_pair):
    recipe = load_recipe(write_recipe(teacher_model_name_or_path=str(tiny_pair.student)))
    for measure in (
        lambda: measure_variance(recipe, None, draws=4, prompts=2),
        lambda: measure_directions(recipe, None, draws=4, prompts=2, directions=1),
        lambda: measure_baselines(recipe, None, prompts=2, draws=1),
    ):
        with pytest.raises(RecipeError, match="agrees with the student everywhere"):
            measure()


def run(*words):
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)


@pytest.mark.slow  # three processes that import everything: the command, its exit status and its files
def test_the_command(write_recipe, tmp_path, tiny_pair):
    path, folder = write_recipe(), tmp_path / "found"
    refused = run(path, "--draws", 1)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1 and "error: --draws: 1" in refused.stderr
    refused = run(path, "--directions", 2, "--redraws", 4)
    assert refused.returncode == 2 and refused.stderr.startswith("error: --redraws: along --directions")
    words = ["--draws", 4, "--prompts", 4, "--checkpoint", tiny_pair.student, "--output", folder]
    done = run(path, *words, "--support_top_k", 2)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in folder.iterdir()) == ["variance.json", "variance.md", "variance.png"]
    found = json.loads((folder / "variance.json").read_text())
    assert (found["draws"], found["prompts"], found["support_top_k"]) == (4, 4, 2)
    assert (folder / "variance.md").read_text().strip() in done.stdout
    with Image.open(folder / "variance.png") as image:
        image.load()
        assert image.width > 1000


# Along directions ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "none": Estimator(baseline="none"), "optimal": Estimator(baseline="optimal"),
    "value_topk/teacher/5": Estimator(baseline="value_topk", support="teacher", support_top_k=5),
    "rao_blackwell_optimal/student/20": Estimator("rao_blackwell", "optimal", support_top_k=20),
    "rao_blackwell_tail/teacher/5": Estimator("rao_blackwell", "tail", support="teacher", support_top_k=5),
    "full": Estimator("full", "none"), "topk/student/5": Estimator("topk", "none", support_top_k=5),
}  # fmt: skip


@pytest.fixture(scope="module", params=["tied", "untied"])
def along(request, tiny_pair):
    """A probe of the pair in float64, a packed row of two completions, a direction, and what the probe found."""
    folders = [tiny_pair.student, tiny_pair.teacher][:: 1 if request.param == "tied" else -1]
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder).double().eval() for folder in folders)
    for model in (student, teacher):
        model.set_attn_implementation("packed_sdpa")
    samples = [Sample(i, [5, 7, 9 + i], [11, 40 + i, 200, 8], [0.0] * 4, True) for i in range(2)]
    probe = DirectionProbe(student, teacher, Estimator(), ks=(5, 20))
    (batch,) = pack(samples, 1)
    direction = probe.direction(torch.Generator().manual_seed(0))
    return probe, student, teacher, batch, direction, probe.measure([batch], [direction])


def derivative(student, teacher, batch, direction, estimator, targets, weights) -> float:
    """⟨gradient of the dense loss, direction⟩ by a backward pass."""
    student.zero_grad()
    logits = [model.lm_head(completion_states(model, batch)) for model in (student, teacher)]
    reference_loss(logits[0], logits[1], targets, estimator, token_weights=weights)[0].backward()
    return sum((value.grad * direction[name]).sum() for name, value in student.named_parameters()).item()


@pytest.mark.parametrize("name", COLUMNS)
def test_a_gradient_along_a_direction_is_the_backward_passs(along, name) -> None:
    probe, student, teacher, batch, direction, found = along
    ones = torch.ones(len(batch.targets), dtype=torch.float64)
    expected = derivative(student, teacher, batch, direction, COLUMNS[name], batch.targets, ones)
    assert found.own[name].item() == pytest.approx(expected, rel=1e-4)  # norms compute in float32
    assert set(direction) == {name for name, _ in student.named_parameters()}  # every parameter is gone along
    assert found.tokens == 8


@pytest.mark.parametrize("name", ["optimal", "rao_blackwell_tail/teacher/5"])
def test_the_variance_along_a_direction_is_the_enumerated_one(along, name) -> None:
    """Every y in turn in one context: its gradient by a backward pass, weighted by p(y)."""
    probe, student, teacher, batch, direction, _ = along
    chosen = torch.tensor([3])
    weights = torch.zeros(len(batch.targets), dtype=torch.float64).index_fill_(0, chosen, 1.0)
    with torch.no_grad():
        p = student.lm_head(completion_states(student, batch)[chosen]).softmax(-1)[0]
    per_y = [
        derivative(student, teacher, batch, direction, COLUMNS[name], batch.targets.index_fill(0, chosen, y), weights)
        for y in range(len(p))
    ]
    values = torch.tensor(per_y, dtype=torch.float64)
    expected = (p * values.square()).sum() - (p * values).sum().square()
    with torch.no_grad():
        hidden, hidden_dot = probe._hidden(batch, direction)
        logits = probe._logits(hidden[chosen], hidden_dot[chosen], probe._head_dots(direction))
        rows = probe._rows([logits], completion_states(teacher, batch)[chosen], batch.targets[chosen])
        measured = {column: value.item() for kind, column, value in rows if kind == "variance"}
    assert measured[name] == pytest.approx(expected.item(), rel=1e-4)


def test_directions_meet_the_gradients_themselves(write_recipe) -> None:
    """The two ways to a variance, on the same draws: backward passes and forward derivatives."""
    recipe = load_recipe(write_recipe(max_completion_length=6, per_device_train_batch_size=16, support_top_k=5))
    whole = measure_variance(recipe, None, draws=24, prompts=6, redraws=2)["methods"]
    along = measure_directions(recipe, None, draws=24, prompts=6, directions=4)["columns"]
    for name, column in (
        ("value", "value"),
        ("optimal", "optimal"),
        ("rao_blackwell_tail", "rao_blackwell_tail/student/5"),
    ):
        expected, found = whole[name]["conditional"]["ratio"]["total"]["value"], along[column]["given"]["value"]
        assert found == pytest.approx(expected, rel=0.15), name
        assert along[column]["predicted"] == pytest.approx(whole[name]["predicted"]["logits"], rel=1e-3)
    assert along["full"]["total"]["value"] < along["value"]["total"]["value"]
    expected = whole["topk"]["squared_bias"]["total"]["value"]
    assert along["topk/student/5"]["squared_bias"]["value"] == pytest.approx(expected, rel=0.3, abs=0.003)


def test_directions_are_written(write_recipe, tmp_path) -> None:
    recipe = load_recipe(write_recipe(max_completion_length=4, per_device_train_batch_size=16))
    two_pairs = write_directions(measure_directions(recipe, None, draws=4, prompts=4, directions=2), tmp_path / "few")
    assert "±" not in two_pairs.split("\n\n", 1)[1]
    text = write_directions(measure_directions(recipe, None, draws=6, prompts=4, directions=2), tmp_path / "out")
    assert (tmp_path / "out" / "directions.md").read_text() == text + "\n"
    assert json.loads((tmp_path / "out" / "directions.json").read_text())["columns"]["none"]["given"]["value"] == 1
    assert re.search(r"\| `rao_blackwell_tail` \|( 0\.\d+ ± 0\.\d+ \(0\.\d+\) \|){6}", text)
    with Image.open(tmp_path / "out" / "directions.png") as picture:
        assert picture.width > 400
    assert "| `topk/student/5` | " in text and "| `full` | " in text
    with pytest.raises(RecipeError, match="--directions must be at least 1"):
        measure_directions(recipe, None, 4, 4, 0)
