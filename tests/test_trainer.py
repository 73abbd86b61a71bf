"""The loop by its numbers: packed = one at a time, any split = one update, equal models = nothing to learn."""

import copy
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from family_configs import SHAPE
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

from vopd_recipes.loss import METHODS
from vopd_recipes.models import load_student, load_teacher, load_tokenizer
from vopd_recipes.packing import pack
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.rollout import Sampling, TransformersRollout
from vopd_recipes.teacher import TeacherUnavailable
from vopd_recipes.training import TrainingStopped, VOPDTrainer, finish_run, start_run, train
from vopd_recipes.training.command import _check_optimizer, _check_precision
from vopd_recipes.training.trainer import rollout_seed

LOGGED = {
    "loss", "reverse_kl", "reward/mean", "reward/std", "advantage/mean", "advantage/std", "baseline/mean", "entropy",
    "completion/length", "completion/truncated", "importance/mean", "importance/max", "rollout/logprob_gap",
    "time/rollout", "time/sync", "time/train", "time/teacher", "time/student", "time/optimizer",
    "tokens_per_second", "grad_norm",
}  # fmt: skip


def build(path: Path, **fields) -> VOPDTrainer:
    """The trainer of a recipe, as scripts/run_vopd.py builds it."""
    recipe = load_recipe(path, [word for name, value in fields.items() for word in (f"--{name}", str(value))])
    tokenizer = load_tokenizer(recipe.model)
    prompts = build_prompts(read_rows(recipe.data, recipe.training.seed), recipe.data, tokenizer)
    torch.manual_seed(recipe.training.seed)
    trainer = VOPDTrainer(
        load_student(recipe.model),
        load_teacher(recipe.model),
        recipe.training,
        processing_class=tokenizer,
        train_dataset=prompts.train,
        eval_dataset=prompts.test,
    )
    trainer.recipe = recipe
    return trainer


def gradients_of(trainer: VOPDTrainer, batches) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a window, micro-batch after micro-batch."""
    trainer.model.zero_grad()
    tokens = torch.tensor(sum(len(batch.targets) for batch in batches))
    losses = []
    for batch in batches:
        (view,) = trainer.teacher.views([batch])
        inputs = {"micro_batch": batch, "teacher_view": view}
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=tokens)
        loss.backward()
        losses.append(loss.item())
    return sum(losses), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def log_lines(trainer: VOPDTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def assert_same_weights(first, second, tolerance):
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters()):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0, msg=lambda message, n=name: f"{n}: {message}")


@pytest.mark.parametrize("attention", ["packed_sdpa", "sdpa", "eager"])
@pytest.mark.parametrize("estimator", ["value", "optimal", "full"])
def test_packed_micro_batches_equal_one_sequence_at_a_time(write_recipe, estimator, attention):
    choice = {"divergence": "full"} if estimator == "full" else {"baseline": estimator}
    trainer = build(write_recipe(attn_implementation=attention, **choice))
    samples = trainer.sample(list(trainer.train_dataset)[:6], step=0, generations=1)
    alone_loss, alone = gradients_of(trainer, pack(samples, len(samples)))
    for count in (1, 2, 4):
        loss, packed = gradients_of(trainer, pack(samples, count))
        assert loss == pytest.approx(alone_loss, abs=1e-5)
        for name, gradient in packed.items():
            torch.testing.assert_close(gradient, alone[name], atol=1e-5, rtol=1e-4)


def test_loss_is_the_mean_over_tokens_of_the_reference_loss(write_recipe):
    """Unpacked, dense, by hand: the models' own logits through `reference_loss`."""
    from vopd_recipes.loss import reference_loss

    trainer = build(write_recipe())
    samples = trainer.sample(list(trainer.train_dataset)[:4], step=0, generations=1)
    loss, gradients = gradients_of(trainer, pack(samples, 2))
    trainer.model.zero_grad()
    student, teacher, targets, rollout = [], [], [], []
    for sample in samples:
        tokens = torch.tensor([sample.prompt_ids + sample.completion_ids])
        part = slice(len(sample.prompt_ids) - 1, -1)
        student.append(trainer.model(input_ids=tokens).logits[0, part])
        teacher.append(trainer.teacher.model(input_ids=tokens).logits[0, part])
        targets.append(torch.tensor(sample.completion_ids))
        rollout.append(torch.tensor(sample.rollout_logprobs))
    expected, _ = reference_loss(
        torch.cat(student),
        torch.cat(teacher),
        torch.cat(targets),
        trainer.estimator,
        rollout_logprobs=torch.cat(rollout),
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_any_split_into_accumulation_steps_gives_the_same_update(write_recipe, tmp_path):
    models = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        output_dir = tmp_path / f"{batch_size}x{accumulation}"
        trainer = build(
            write_recipe(), per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
            max_steps=3, output_dir=output_dir,
        )  # fmt: skip
        trainer.train()
        models.append((trainer.model, log_lines(trainer)))
    (model, lines), *others = models
    for other, other_lines in others:
        assert_same_weights(model, other, tolerance=1e-5)
        for name in ("loss", "reverse_kl", "grad_norm", "advantage/std"):
            ours, theirs = ([line[name] for line in each] for each in (lines, other_lines))
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), name


def test_gradient_checkpointing_changes_nothing(write_recipe, tmp_path):
    models = []
    for on in (False, True):
        trainer = build(write_recipe(), gradient_checkpointing=on, output_dir=tmp_path / str(on))
        trainer.train()
        models.append(trainer.model)
    assert_same_weights(*models, tolerance=1e-6)


@pytest.mark.slow  # it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_a_compiled_loss_changes_nothing(write_recipe, tmp_path):
    models = []
    counters.clear()
    for on in (False, True):
        trainer = build(write_recipe(), loss_compile=on, output_dir=tmp_path / str(on), max_steps=1)
        trainer.train()
        models.append(trainer.model)
        assert (counters["stats"]["unique_graphs"] > 0) == on
    assert_same_weights(*models, tolerance=1e-5)  # Adam's first step magnifies rounding in small gradients


@pytest.mark.parametrize("baseline", ["value", "optimal", "value_topk"])
def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(write_recipe, tiny_pair, baseline):
    # Plain SGD: Adam divides rounding noise by its own size.
    trainer = build(write_recipe(teacher_model_name_or_path=str(tiny_pair.student), baseline=baseline, optim="sgd"))
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for line in log_lines(trainer):
        assert abs(line["reverse_kl"]) < 1e-6 and line["advantage/std"] < 1e-5 and line["grad_norm"] < 1e-4
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight, before[name], atol=1e-6, rtol=0)


def test_each_model_reads_each_token_once_per_update(write_recipe):
    trainer = build(write_recipe())
    samples = trainer.sample(list(trainer.train_dataset)[:5], step=0, generations=1)
    read = {"student": 0, "teacher": 0}

    def count(name):
        def hook(module, inputs):
            read[name] += inputs[0].numel()

        return hook

    trainer.model.get_input_embeddings().register_forward_pre_hook(count("student"))
    trainer.teacher.model.get_input_embeddings().register_forward_pre_hook(count("teacher"))
    gradients_of(trainer, pack(samples, 2))
    assert read["student"] == read["teacher"] == sum(sample.length for sample in samples)


def test_sampler_and_trainer_agree_on_log_probabilities(write_recipe):
    trainer = build(write_recipe(max_completion_length=24))
    trainer.train()
    for line in log_lines(trainer):
        assert line["rollout/logprob_gap"] < 1e-5
        assert line["importance/max"] == pytest.approx(1, abs=1e-4)


def test_a_run_leaves_what_it_promises(write_recipe, tmp_path):
    trainer = build(
        write_recipe(eval_strategy="steps", eval_steps=2, dataset_test_split="test", save_steps=1, save_total_limit=1),
        num_generations=2, log_gradient_variance=True, max_steps=3,
    )  # fmt: skip
    start_run(trainer.recipe, trainer)
    trainer.train()
    finish_run(trainer)
    folder = tmp_path / "run"
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert all(line.keys() >= LOGGED for line in history if "loss" in line)
    variances = {name.split("/")[1] for name in history[0] if name.startswith("gradient_variance/")}
    assert variances >= {"none", "constant", "value", "value_topk", "optimal", "full", "topk", "rao_blackwell_tail"}
    assert variances == {row.key for row in METHODS.values()}
    assert history[0]["gradient_variance/optimal"] <= history[0]["gradient_variance/value"]
    held_out = next(line for line in history if "eval_reverse_kl" in line)
    assert {"eval_accuracy", "eval_completion_length", "eval_truncated"} <= held_out.keys()
    rows = pq.read_table(folder / "completions" / "step-00000002.parquet").to_pylist()
    assert len(rows) == 8 and len({row["prompt_id"] for row in rows}) == 4
    assert all(len(row["advantage"]) == len(row["token_ids"]) == len(row["rollout_logprobs"]) for row in rows)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    assert (folder / "plots" / "training.png").stat().st_size > 10_000
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]
    assert not list(folder.rglob("*.bin")) or all("checkpoint" in str(path) for path in folder.rglob("*.bin"))
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert_same_weights(again, trainer.model, tolerance=0)
    resolved = load_recipe(folder / "recipe.yaml").resolved()
    assert resolved == trainer.recipe.resolved()


def test_logged_variances_are_the_closed_form_on_the_steps_own_tokens(write_recipe, tmp_path):
    """Σ p A² s - ‖p∘A - (Σ p A) p‖² by hand, in float64, over the contexts that the step's own file names."""
    trainer = build(write_recipe(max_completion_length=12), log_gradient_variance=True, max_steps=1, support_top_k=5)
    student, teacher = load_student(trainer.recipe.model), load_teacher(trainer.recipe.model)
    prompts = {row["prompt_id"]: row["input_ids"] for row in trainer.train_dataset}
    trainer.train()
    rows = pq.read_table(tmp_path / "run" / "completions" / "step-00000001.parquet").to_pylist()
    logp, logq = [], []
    for row in rows:
        tokens = torch.tensor([prompts[row["prompt_id"]] + row["token_ids"]])
        first = len(prompts[row["prompt_id"]]) - 1
        with torch.no_grad():
            for model, found in ((student, logp), (teacher, logq)):
                found.append(model(tokens).logits[0, first:-1].double().log_softmax(-1))
    logp, logq = torch.cat(logp), torch.cat(logq)
    p, r = logp.exp(), logq - logp
    s = 1 - 2 * p + p.square().sum(-1, keepdim=True)
    top = logp.topk(5).indices
    top_p, top_q = (values.gather(1, top).log_softmax(-1) for values in (logp, logq))
    baselines = {
        "none": torch.zeros(len(p), 1),
        "constant": torch.ones(len(p), 1),
        "value": (p * r).sum(-1, keepdim=True),
        "value_topk": (top_p.exp() * (top_q - top_p)).sum(-1, keepdim=True),
        "optimal": (p * r * s).sum(-1, keepdim=True) / (p * s).sum(-1, keepdim=True),
    }
    expected = {"full": 0.0, "topk": 0.0}
    for name, baseline in baselines.items():
        a = r - baseline
        mean = p * a - (p * a).sum(-1, keepdim=True) * p
        expected[name] = ((p * a.square() * s).sum(-1) - mean.square().sum(-1)).mean().item()
    (line,) = log_lines(trainer)
    for name, variance in expected.items():
        assert line[f"gradient_variance/{name}"] == pytest.approx(variance, rel=1e-4), name
        ratio = line[f"gradient_variance_ratio/{name}"]
        assert ratio == pytest.approx(variance / expected["none"], rel=1e-4), name
    assert expected["optimal"] < expected["value"] < expected["none"] < expected["constant"]


def test_equal_models_have_variances_and_no_ratio(write_recipe, tiny_pair):
    trainer = build(
        write_recipe(teacher_model_name_or_path=str(tiny_pair.student)), log_gradient_variance=True, max_steps=1
    )
    trainer.train()
    (line,) = log_lines(trainer)
    assert line["gradient_variance/none"] == line["gradient_variance/value"] == 0
    assert line["gradient_variance/constant"] > 0.1
    assert not [name for name in line if name.startswith("gradient_variance_ratio/")]


def test_evaluation_repeats_itself_and_leaves_no_trace(write_recipe):
    trainer = build(write_recipe(dataset_test_split="test"))
    state = torch.get_rng_state()
    first, second = trainer.evaluate(), trainer.evaluate()
    assert torch.equal(state, torch.get_rng_state())
    for name in ("eval_reverse_kl", "eval_completion_length", "eval_accuracy"):
        assert first[name] == second[name]
    assert first["eval_reverse_kl"] > 0.1
    assert not trainer.metrics._sums  # its sampling is no step's time


def test_several_samples_a_held_out_prompt_and_their_standard_error(write_recipe):
    """KL by hand from each completion's logits; prompts resampled four thousand times scatter as the error says."""
    recipe = write_recipe(dataset_test_split="test", max_completion_length=10)
    one, trainer = build(recipe).evaluate(), build(recipe, num_generations_eval=3)
    several = trainer.evaluate()
    rows = list(trainer.eval_dataset)
    samples = trainer.sample(rows, step=-1, generations=3)
    prompts = len(rows)
    kl, tokens = torch.zeros(2, prompts, dtype=torch.float64)
    for place, sample in enumerate(samples):
        sequence, first = torch.tensor([sample.prompt_ids + sample.completion_ids]), len(sample.prompt_ids) - 1
        with torch.no_grad():
            models = (trainer.model.eval(), trainer.teacher.model)
            logp, logq = (model(sequence).logits[0, first:-1].double().log_softmax(-1) for model in models)
        kl[place // 3] += (logp.exp() * (logp - logq)).sum()
        tokens[place // 3] += len(sample.completion_ids)
    assert len(samples) == 3 * prompts and samples[0].completion_ids != samples[1].completion_ids
    assert several["eval_reverse_kl"] == pytest.approx((kl.sum() / tokens.sum()).item(), rel=1e-5)
    assert several["eval_completion_length"] == pytest.approx((tokens.sum() / len(samples)).item())
    chosen = torch.randint(prompts, (4000, prompts), generator=torch.Generator().manual_seed(0))
    scatter = (kl[chosen].sum(1) / tokens[chosen].sum(1)).std().item() * (prompts / (prompts - 1)) ** 0.5
    assert several["eval_reverse_kl_stderr"] == pytest.approx(scatter, rel=0.2)
    assert several["eval_reverse_kl_stderr"] < one["eval_reverse_kl_stderr"]
    assert several["eval_accuracy_stderr"] >= 0


def test_input_tokens_are_those_of_the_sequences(write_recipe, tmp_path):
    """A prompt and all but the last token of its completion, each once, over a resume too."""
    counted = {"include_num_input_tokens_seen": "all", "save_steps": 1, "num_generations": 2}
    trainer = build(write_recipe(), **counted)
    trainer.train()
    rows = [
        row for path in sorted((tmp_path / "run" / "completions").iterdir()) for row in pq.read_table(path).to_pylist()
    ]
    prompts = {row["prompt_id"]: len(row["input_ids"]) for row in trainer.train_dataset}
    expected = sum(prompts[row["prompt_id"]] + len(row["token_ids"]) - 1 for row in rows)
    assert len(rows) == 16
    assert log_lines(trainer)[-1]["num_input_tokens_seen"] == expected
    resumed = build(write_recipe(), **counted)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert resumed.state.num_input_tokens_seen == expected


def test_a_resumed_run_is_quiet(write_recipe, tmp_path, caplog):
    """The student's head is tied to its embeddings, and it was evaluated before its first step already."""
    recipe = write_recipe(dataset_test_split="test", eval_on_start=True, save_steps=1)
    trainer = build(recipe)
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "eval_runtime" in line] == [0]
    resumed = build(recipe)
    transformers.logging.enable_propagation()
    try:
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    finally:
        transformers.logging.disable_propagation()
    assert "missing keys" not in caplog.text
    assert [line["step"] for line in resumed.state.log_history if "eval_runtime" in line] == [0]
    assert_same_weights(resumed.model, trainer.model, 0)


def test_a_weight_that_is_missing_is_an_alarm(write_recipe, tmp_path):
    recipe = write_recipe(max_steps=1, save_steps=1)
    build(recipe).train()
    file = tmp_path / "run" / "checkpoint-1" / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name != "model.norm.weight"}, file)
    with pytest.raises(RecipeError, match=r"checkpoint-1: holds no weight model.norm.weight of this model"):
        build(recipe, max_steps=2).train(resume_from_checkpoint=str(file.parent))


def test_fused_experts_resume_with_their_weights(write_recipe, tmp_path):
    """In a checkpoint each expert stands by itself, under a name that the model does not have."""
    torch.manual_seed(0)
    vocabulary = AutoConfig.from_pretrained(load_recipe(write_recipe(), []).model.model_name_or_path).vocab_size
    shape = {**SHAPE, "vocab_size": vocabulary}
    settings = Qwen3MoeConfig(**shape, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    student = tmp_path / "student"
    AutoModelForCausalLM.from_config(settings).save_pretrained(student)
    load_tokenizer(load_recipe(write_recipe(), []).model).save_pretrained(student)
    recipe = write_recipe(model_name_or_path=str(student), save_steps=2, max_steps=3)
    trainer = build(recipe)
    trainer.train()
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert any(".experts.3." in name for name in saved)
    resumed = build(recipe)
    before = copy.deepcopy(resumed.model.state_dict())
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_same_weights(resumed.model, trainer.model, 0)
    experts = next(name for name in before if ".experts." in name)
    assert not torch.equal(before[experts], resumed.model.state_dict()[experts])


def test_a_resumed_run_saves_and_evaluates_as_its_recipe_says_now(write_recipe, tmp_path):
    trainer = build(write_recipe(max_steps=2, save_steps=2, eval_strategy="no", dataset_test_split="test"))
    trainer.train()
    resumed = build(
        write_recipe(max_steps=6, save_steps=1, eval_strategy="steps", eval_steps=2, dataset_test_split="test")
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [line["step"] for line in resumed.state.log_history if "eval_runtime" in line] == [4, 6]
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} >= {f"checkpoint-{n}" for n in (3, 4, 5)}


def test_a_stop_inside_an_evaluation_does_not_count_as_evaluated(write_recipe, tmp_path):
    """A checkpoint of that step would resume behind the evaluation; the one before it repeats step and evaluation."""
    fields = {"eval_strategy": "steps", "eval_steps": 2, "dataset_test_split": "test"}
    recipe = write_recipe(max_steps=2, save_steps=1, **fields)
    expected = build(recipe, output_dir=tmp_path / "undisturbed")
    expected.train()
    stopped = build(recipe)
    views = stopped.teacher.views

    def away(batches):
        if stopped._evaluating:
            raise TeacherUnavailable("the server is away")
        return views(batches)

    stopped.teacher.views = away
    with pytest.raises(TrainingStopped, match=r"the server is away; the same command resumes from .*checkpoint-1$"):
        stopped.train()
    resumed = build(recipe)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    evaluations = [[line["eval_reverse_kl"] for line in one.state.log_history if "eval_reverse_kl" in line]
                   for one in (expected, resumed)]  # fmt: skip
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 1


@pytest.mark.parametrize("max_steps", [6, 7])
def test_an_epochs_evaluation_is_made_up_for(write_recipe, tmp_path, max_steps):
    """Its last checkpoint is of before its evaluation, also where no epoch is left; 24 prompts, 4 a step."""
    fields = {"eval_strategy": "epoch", "dataset_test_split": "test", "save_steps": 3, "max_completion_length": 8}
    recipe = write_recipe(max_steps=max_steps, **fields)
    expected = build(recipe)
    expected.train()
    resumed = build(recipe, output_dir=tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    evaluations = [[(line["step"], line["eval_reverse_kl"]) for line in one.state.log_history
                    if "eval_reverse_kl" in line] for one in (expected, resumed)]  # fmt: skip
    assert evaluations[0] == evaluations[1] and evaluations[0][0][0] == 6
    assert_same_weights(resumed.model, expected.model, 0)


def test_training_that_a_callback_ends_is_not_finished(write_recipe, tmp_path):
    """As transformers' own at a SIGTERM does (`enable_jit_checkpoint`)."""

    class Ends(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 1

    trainer = build(write_recipe(save_steps=1))
    trainer.add_callback(Ends())
    trainer.train()
    with pytest.raises(TrainingStopped, match=r"step 2: training was ended before step 2; the same .*checkpoint-1$"):
        trainer.check_ended()
    resumed = build(write_recipe(save_steps=1))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    resumed.check_ended()


def test_the_best_checkpoint_is_kept_beside_the_newest(write_recipe, tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "dataset_test_split": "test", "greater_is_better": False}
    trainer = build(write_recipe(max_steps=3, save_steps=1, save_total_limit=1, learning_rate=0.3,
                                 metric_for_best_model="reverse_kl", **fields))  # fmt: skip
    trainer.train()
    best = trainer.state.best_model_checkpoint
    kept = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert best is not None and kept == {Path(best).name, "checkpoint-3"}


def test_truncated_completions_can_be_left_out(write_recipe, tmp_path):
    """Completions of two tokens never end: masked, there is nothing to learn from and no token to divide by."""
    trainer = build(write_recipe(max_completion_length=2), mask_truncated_completions=True)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert all(line["completion/truncated"] == 1 and line["loss"] == 0 for line in log_lines(trainer))
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight, before[name], atol=0, rtol=0)


def test_lora_trains_adapters_and_leaves_the_base_alone(write_recipe, tmp_path, tiny_pair):
    trainer = build(write_recipe(use_peft=True, lora_r=4, lora_dropout=0.1))
    start_run(trainer.recipe, trainer)
    trainer.train()
    finish_run(trainer)
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    base = load_file(tiny_pair.student / "model.safetensors")
    for name, parameter in trainer.model.get_base_model().named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name


def test_a_teacher_with_a_wider_padded_vocabulary(write_recipe, tmp_path, tokenizer):
    from vopd_recipes.tiny import pair as tiny

    tiny.save(tiny.tiny_qwen3(32, 1, seed=5, vocab_size=300), tokenizer, tmp_path / "wide")
    trainer = build(write_recipe(teacher_model_name_or_path=str(tmp_path / "wide")))
    trainer.train()
    assert trainer.vocabulary == 264
    assert all(line["reverse_kl"] > 0 for line in log_lines(trainer))


def test_a_loss_that_is_not_finite_stops_the_run(write_recipe):
    trainer = build(write_recipe(save_steps=1))

    class Poison(type(trainer.callback_handler.callbacks[0])):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            next(model.parameters()).data[0] = torch.inf

    trainer.add_callback(Poison())
    with pytest.raises(TrainingStopped, match=r"step 2: .* last good checkpoint: .*checkpoint-1"):
        trainer.train()


def test_one_process_uses_one_gpu(write_recipe):
    """Several GPUs and one process: DataParallel would copy the model past the redirected loss."""
    recipe = load_recipe(write_recipe())
    recipe.training._n_gpu = 4
    tokenizer, student = load_tokenizer(recipe.model), load_student(recipe.model)
    trainer = VOPDTrainer(student, load_teacher(recipe.model), recipe.training, processing_class=tokenizer)
    assert trainer.args.n_gpu == 1


def test_rollout_seeds_depend_on_each_of_their_parts():
    seeds = {rollout_seed(*parts) for parts in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]}
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("mixed", [{"bf16": True}, {"dtype": "bfloat16"}])
def test_half_precision_trains(write_recipe, mixed):
    """bfloat16 compute on float32 weights, and bfloat16 weights: finite, and near the float32 step."""
    trainer, exact = build(write_recipe(**mixed)), build(write_recipe())
    trainer.train()
    exact.train()
    ours, theirs = log_lines(trainer)[0], log_lines(exact)[0]
    assert ours["reverse_kl"] == pytest.approx(theirs["reverse_kl"], rel=0.2)
    assert ours["rollout/logprob_gap"] < 0.1


def test_a_teacher_that_visits_gives_the_same_losses(write_recipe, tmp_path):
    """`teacher_offload`: hidden states of the whole window at once instead of one micro-batch after the other."""
    lines = []
    for offload in (False, True):
        trainer = build(write_recipe(), teacher_offload=offload, output_dir=tmp_path / str(offload))
        trainer.train()
        lines.append([(line["loss"], line["reverse_kl"], line["grad_norm"]) for line in log_lines(trainer)])
        for line in log_lines(trainer):  # the teacher's time is the teacher's, before the first micro-batch or in it
            parts = [line[f"time/{name}"] for name in ("teacher", "student", "optimizer")]
            assert min(parts) > 0 and sum(parts) == pytest.approx(line["time/train"])
    assert lines[0] == lines[1]


def test_a_teacher_that_visits_leaves_its_weights_where_they_wait(write_recipe):
    """Frozen weights are not copied back: the same memory before and after, and no other parameter than the head's."""
    trainer = build(write_recipe(), teacher_offload=True)
    backbone = trainer.teacher.model.base_model
    before = {name: parameter.data_ptr() for name, parameter in backbone.named_parameters()}
    assert len(trainer.teacher._waiting) == len(before)  # an untied head is not in the backbone
    trainer.train()
    assert {name: parameter.data_ptr() for name, parameter in backbone.named_parameters()} == before


def test_half_precision_needs_a_float32_copy_of_what_it_trains(write_recipe, monkeypatch):
    def check(**fields):
        _check_precision(load_recipe(write_recipe(**fields)))

    for allowed in ({}, {"bf16": True}, {"dtype": "bfloat16", "use_peft": True}, {"teacher_dtype": "float16"}):
        check(**allowed)
    for refused in ({"dtype": "float16"}, {"dtype": "float16", "use_peft": True, "bf16": True}):
        with pytest.raises(RecipeError, match="dtype: float16: the student's gradients would underflow"):
            check(**refused)
    for refused in ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "bf16": True}):
        with pytest.raises(
            RecipeError, match="dtype: bfloat16: most updates of the student's weights would round away"
        ):
            check(**refused)
    fields = load_recipe(write_recipe(dtype="bfloat16", bf16=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    _check_precision(fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"optim": "sgd", "optim_args": "momentum"},
            "optim: sgd cannot be made with optim_args: momentum: not enough",
        ),
        ({"optim": "sgd", "optim_args": "momentum=fast"}, "could not convert string to float: 'fast'"),
        ({"optim": "sgd", "optim_args": "momentum=-1"}, "Invalid momentum value: -1.0"),
        ({"adam_beta1": 2}, "optim: adamw_torch_fused: Invalid beta parameter at index 0: 2"),
        ({"optim": "adamw_anyprecision"}, "optim: adamw_anyprecision: Please install"),
        ({"optim": "galore_adamw"}, "optim: galore_adamw: You need to install `galore_torch`"),
    ],
)
def test_an_optimizer_that_cannot_be_made(write_recipe, fields, says):
    path = write_recipe(**fields)
    with pytest.raises(RecipeError) as refused:
        train(load_recipe(path))
    assert str(refused.value).startswith(f"{path}:") and says in str(refused.value)


def test_optimizers_that_can_be_made(write_recipe):
    for kind in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"):
        _check_optimizer(load_recipe(write_recipe(optim=kind)))
    _check_optimizer(load_recipe(write_recipe(optim="sgd", optim_args="momentum=0.9, nesterov=true")))


def test_a_sampler_that_is_a_little_off_does_not_begin(write_recipe):
    """0.03 nats: far below what rounding to bfloat16 does to a token, and another model in float32."""
    for dtype, starts in (("float32", False), ("bfloat16", True)):
        trainer = build(write_recipe(dtype=dtype, max_steps=1))
        other = copy.deepcopy(trainer.student).eval()
        with torch.no_grad():
            other.model.layers[1].mlp.down_proj.weight.mul_(1.02)
        trainer.rollout = TransformersRollout(lambda m=other: m, {256}, trainer.vocabulary, Sampling(), batch_size=8)
        if starts:
            trainer.train()
            assert 1e-3 < log_lines(trainer)[0]["rollout/logprob_gap"] < 0.05
            continue
        with pytest.raises(TrainingStopped, match="step 1: rollout/logprob_gap is 0.0.* nats per token") as stopped:
            trainer.train()
        assert trainer.state.global_step == 0
        assert str(stopped.value).endswith("resumes from the beginning")


def test_a_sampler_that_is_not_the_student_stops_the_run(write_recipe):
    trainer = build(write_recipe())
    trainer.rollout = TransformersRollout(
        lambda: trainer.teacher.model, {256}, trainer.vocabulary, Sampling(), batch_size=8
    )
    with pytest.raises(TrainingStopped, match=r"step 1: rollout/logprob_gap is \d.\d\d nats per token: what samples"):
        trainer.train()
