"""A recipe is read as written, or refused in one line that says where."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vopd_recipes.loss import Estimator
from vopd_recipes.recipe import Recipe, RecipeError, load_recipe
from vopd_recipes.recipe.config import describe_fields

ROOT = Path(__file__).parents[1]
BASE = {
    "model_name_or_path": "student",
    "teacher_model_name_or_path": "teacher",
    "dataset_name": "prompts",
    "output_dir": "run",
    "use_cpu": True,
    "report_to": "none",
}


def load(folder: Path, lines: str = "", *flags: str, leave_out: tuple[str, ...] = ()) -> Recipe:
    """Load a valid six-line recipe, less what is left out, with `lines` from line 7 on."""
    path = folder / "recipe.yaml"
    kept = {name: value for name, value in BASE.items() if name not in leave_out}
    path.write_text(yaml.safe_dump(kept, sort_keys=False) + lines, encoding="utf-8")
    return load_recipe(path, list(flags))


def refusal(folder: Path, lines: str = "", *flags: str, leave_out: tuple[str, ...] = ()) -> str:
    """The one line with which a recipe is refused, its folder cut off."""
    with pytest.raises(RecipeError) as caught:
        load(folder, lines, *flags, leave_out=leave_out)
    message = str(caught.value)
    assert message and len(message.splitlines()) == 1
    return message.replace(f"{folder}/", "")


# What is read --------------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.training.estimator == Estimator("sampled", "value")
    assert (recipe.training.learning_rate, recipe.training.temperature, recipe.training.top_k) == (1e-5, 1.0, 0)
    assert (recipe.model.dtype, recipe.data.prompt_column, recipe.training.output_dir) == ("float32", "prompt", "run")


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "'1e-5'", "0.00001", "1.0e-5"])
def test_numbers_that_yaml_reads_as_text(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"learning_rate: {text}\n").training.learning_rate == 1e-5
    assert load(tmp_path, "", "--learning_rate", text.strip("'")).training.learning_rate == 1e-5


def test_whole_numbers(tmp_path: Path) -> None:
    recipe = load(tmp_path, "num_generations: 4.0\nmax_steps: '7'\nlora_r: 1_6\n")
    values = [recipe.training.num_generations, recipe.training.max_steps, recipe.model.lora_r]
    assert values == [4, 7, 16]
    assert all(type(value) is int for value in values)


def test_flags_override_the_file(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, "seed: 1\nmax_steps: 5\nbaseline: none\ndataset_test_split: test\nprompt_template: '{prompt}'\n",
        "--seed", "2", "--max-steps=6", "--use_peft", "--lora_target_modules", "q_proj", "v_proj", "--dtype=bfloat16",
        "--baseline", "value_topk", "--dataset_test_split", "null", "--prompt_template=",
        "--model_revision", "1234567", "--chat_template", "--chat_template_kwargs", "{enable_thinking: false}",
    )  # fmt: skip
    assert (recipe.training.seed, recipe.training.max_steps) == (2, 6)
    assert (recipe.model.use_peft, recipe.model.dtype, recipe.model.model_revision) == (True, "bfloat16", "1234567")
    assert recipe.model.lora_target_modules == ["q_proj", "v_proj"]
    assert recipe.training.baseline == "value_topk"
    assert (recipe.data.dataset_test_split, recipe.data.prompt_template) == (None, "")
    assert recipe.data.chat_template_kwargs == {"enable_thinking": False}
    assert recipe.sources["seed"] == "--seed"
    assert recipe.sources["use_cpu"] == f"{recipe.path}:5"


def test_a_flag_of_one_module_stays_text_and_two_are_a_list(tmp_path: Path) -> None:
    assert load(tmp_path, "", "--lora_target_modules", "all-linear").model.lora_target_modules == "all-linear"
    assert load(tmp_path, "lora_target_modules: [q_proj]\n").model.lora_target_modules == ["q_proj"]


def test_a_bare_no_is_a_strategy(tmp_path: Path) -> None:
    recipe = load(tmp_path, "eval_strategy: no\nsave_strategy: 'no'\n")
    assert (recipe.training.eval_strategy, recipe.training.save_strategy) == ("no", "no")


def test_extends_merges_a_chain_of_relative_files(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base.yaml").write_text(yaml.safe_dump({**BASE, "seed": 1, "max_steps": 1, "lora_r": 4}))
    (tmp_path / "models" / "longer.yaml").write_text("extends: base.yaml\nmax_steps: 2\nbaseline: none\n")
    (tmp_path / "runs").mkdir()
    last = tmp_path / "runs" / "last.yaml"
    last.write_text("baseline: optimal\nextends: ../models/longer.yaml\nseed: 3\n")
    recipe = load_recipe(last, ["--lora_r", "8"])
    assert (recipe.training.seed, recipe.training.max_steps, recipe.training.baseline) == (3, 2, "optimal")
    assert (recipe.model.lora_r, recipe.model.model_name_or_path) == (8, "student")
    assert recipe.sources["seed"] == f"{last}:3"
    assert Path(recipe.sources["max_steps"].rpartition(":")[0]).resolve() == tmp_path / "models" / "longer.yaml"
    assert "extends" not in recipe.resolved()


@pytest.mark.parametrize(
    ("inherited", "own", "estimator", "source"),
    [
        ("baseline: value\n", "divergence: full\n", ("full", "none"), None),
        ("divergence: sampled\nbaseline: optimal\n", "divergence: topk\n", ("topk", "none"), None),
        ("divergence: full\n", "divergence: sampled\n", ("sampled", "value"), None),
        ("divergence: full\nbaseline: none\n", "divergence: sampled\n", ("sampled", "value"), None),
        ("baseline: optimal\n", "divergence: sampled\n", ("sampled", "optimal"), "base.yaml:1"),  # not another one
        ("divergence: sampled\nbaseline: none\n", "divergence: sampled\n", ("sampled", "none"), "base.yaml:2"),
        ("baseline: optimal\n", "seed: 1\n", ("sampled", "optimal"), "base.yaml:1"),
        ("baseline: value\n", "divergence: full\nbaseline: none\n", ("full", "none"), "recipe.yaml:9"),
    ],
)
def test_another_divergence_inherits_no_baseline(
    tmp_path: Path, inherited: str, own: str, estimator: tuple[Any, Any], source: str | None
) -> None:
    (tmp_path / "base.yaml").write_text(inherited)
    recipe = load(tmp_path, f"extends: base.yaml\n{own}")
    assert recipe.training.estimator == Estimator(*estimator)
    assert recipe.sources.get("baseline") == (source and f"{tmp_path}/{source}")


@pytest.mark.parametrize(
    ("inherited", "own", "flags", "where"),
    [
        ("baseline: none\n", "divergence: full\nbaseline: value\n", (), "recipe.yaml:8"),
        ("divergence: full\n", "baseline: optimal\n", (), "base.yaml:1"),
        ("divergence: full\nbaseline: value\n", "", (), "base.yaml:1"),
        ("divergence: full\nbaseline: value\n", "divergence: full\n", (), "recipe.yaml:8"),
        ("baseline: value\n", "", ("--divergence", "full"), "base.yaml:1"),
        ("baseline: value\n", "divergence: full\n", ("--baseline", "value"), "recipe.yaml:8"),
        ("", "", ("--divergence", "full", "--baseline", "value"), "--divergence"),
    ],
)
def test_a_baseline_that_is_said_is_not_dropped(
    tmp_path: Path, inherited: str, own: str, flags: tuple[str, ...], where: str
) -> None:
    (tmp_path / "base.yaml").write_text(inherited)
    message = refusal(tmp_path, f"extends: base.yaml\n{own}", *flags)
    assert message.startswith(f"{where}: baseline: ")
    assert "has no effect with divergence: full" in message


def test_a_mistake_in_an_extended_file_is_reported_there(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 1\nlerning_rate: 1\n")
    assert refusal(tmp_path, "extends: base.yaml\n").startswith("base.yaml:2: unknown field 'lerning_rate'")


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "divergence: full\nlearning_rate: 1e-4\nuse_peft: true\nlora_target_modules: [q_proj, v_proj]\n",
        "lr_scheduler_type: linear\noptim: adamw_torch\nsave_strategy: steps\nmax_steps: 3\nwarmup_steps: 2\n"
        "gradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: false}\n"
        "lr_scheduler_kwargs: {}\naccelerator_config: {split_batches: false}\nhub_model_id: someone/model\nseed: 3\n",
        "eval_strategy: epoch\ntest_size: 2\nchat_template: true\nchat_template_kwargs: {enable_thinking: false}\n"
        "prompt_template: |-\n  {prompt}\n  Answer in \\boxed{}. ünï\n",
        "temperature: 0.6\ntop_p: 0.95\ntop_k: 20\nallow_biased_sampling: true\nreward_clip_lambda: 1e-3\n",
    ],
)
def test_a_resolved_recipe_loads_as_itself(tmp_path: Path, lines: str) -> None:
    first = load(tmp_path, lines).resolved()
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(first, sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert load_recipe(again).resolved() == first
    assert {name for name, _, _ in describe_fields()} <= first.keys()


def test_a_resolved_mixture_loads_as_itself(tmp_path: Path) -> None:
    lines = "dataset_mixture:\n- {dataset_name: a, weight: 0.5}\n- {dataset_name: b, prompt_column: question}\n"
    recipe = load(tmp_path, lines, leave_out=("dataset_name",))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(recipe.resolved()))
    assert load_recipe(again).resolved() == recipe.resolved()
    sources = recipe.data.sources()
    assert [(s["dataset_name"], s["weight"], s["prompt_column"]) for s in sources] == [
        ("a", 0.5, "prompt"), ("b", 1.0, "question")
    ]  # fmt: skip


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "flags", "where", "says"),
    [
        ("seed: 1\nlerning_rate: 1\n", (), "recipe.yaml:8", "did you mean 'learning_rate'?"),
        ("", ("--numgenerations", "2"), "--numgenerations", "did you mean 'num_generations'?"),
        ("xyzzy: 1\n", (), "recipe.yaml:7", "unknown field 'xyzzy'"),
        ("baseline_support: teacher\n", (), "recipe.yaml:7",
         "unknown field 'baseline_support'; it is called support now"),
        ("", ("--baseline-support", "teacher"), "--baseline_support", "it is called support now"),
        ("support: both\n", (), "recipe.yaml:7", "support must be one of student, teacher, got 'both'"),
        ('"two\\nlines": 1\n', (), "recipe.yaml:7", "unknown field 'two lines'"),
        ("learning_rate: fast\n", (), "recipe.yaml:7", "learning_rate must be a number, got 'fast'"),
        ("learning_rate: true\n", (), "recipe.yaml:7", "must be a number"),
        ("num_generations: 1.5\n", (), "recipe.yaml:7", "must be a whole number, got 1.5"),
        ("num_generations: .inf\n", (), "recipe.yaml:7", "must be a whole number, got inf"),
        ("use_peft: 1\n", (), "recipe.yaml:7", "must be true or false"),
        ("model_revision: 1234567\n", (), "recipe.yaml:7", "must be text or null"),
        ("dtype: float8\n", (), "recipe.yaml:7", "one of float32, bfloat16, float16, got 'float8'"),
        ("lr_scheduler_type: cosin\n", (), "recipe.yaml:7", "must be one of linear, cosine"),
        ("dataset_mixture: 3\n", (), "recipe.yaml:7", "must be a list or null"),
        ("lora_target_modules: [1]\n", (), "recipe.yaml:7", "must be a list or text"),
        ("", ("--seed",), "--seed", "must be a whole number"),
        ("", ("--seed", "1", "2"), "--seed", "got [1, 2]"),
        ("", ("--seed=1", "--seed=2"), "--seed", "given twice"),
        ("", ("other.yaml",), "'other.yaml'", "expected --field value"),
        ("accelerator_config: {no_such: 1}\n", (), "recipe.yaml", "unexpected keyword argument 'no_such'"),
        ("accelerator_config: {even_batches: false}\n", (), "recipe.yaml:7", "deal prompts out in an order"),
        ("accelerator_config: {use_seedable_sampler: false}\n", (), "recipe.yaml:7", "a resumed run does not have"),
        ("train_sampling_strategy: group_by_length\n", (), "recipe.yaml:7", "lengths that completions do not have"),
        ("torch_compile: true\n", (), "recipe.yaml:7", "torch_compile is not supported: a compiled student"),
        ("torch_compile_backend: inductor\n", (), "recipe.yaml:7", "torch_compile_backend is not supported"),
        ("deepspeed: nowhere.json\n", (), "recipe.yaml:7", "nowhere.json"),
        ("seed: -1\n", (), "recipe.yaml:7", "seed must lie in"),
        ("learning_rate: -1\n", (), "recipe.yaml:7", "learning_rate must be finite, at least 0"),
        ("learning_rate: .nan\n", (), "recipe.yaml:7", "learning_rate must be finite"),
        ("max_completion_length: 0\n", (), "recipe.yaml:7", "max_completion_length must be at least 1"),
        ("max_test_prompts: 0\n", (), "recipe.yaml:7", "max_test_prompts must be at least 1"),
        ("logging_steps: 0\n", (), "recipe.yaml:7", "logging_steps"),
        ("logging_steps: .inf\n", (), "recipe.yaml:7", "logging_steps must be positive and finite, got inf"),
        ("save_steps: 0\n", (), "recipe.yaml:7", "save_steps must be positive and finite, got 0"),
        ("save_steps: .nan\n", (), "recipe.yaml:7", "save_steps must be positive and finite, got nan"),
        ("save_steps: .inf\n", (), "recipe.yaml:7", "save_steps must be positive and finite, got inf"),
        ("eval_steps: .inf\n", (), "recipe.yaml:7", "eval_steps must be finite, got inf"),
        ("eval_steps: .nan\n", (), "recipe.yaml:7", "eval_steps must be at least 1, got nan"),
        ("num_train_epochs: 0\n", (), "recipe.yaml:7", "num_train_epochs must be positive and finite, got 0"),
        ("num_train_epochs: .nan\n", (), "recipe.yaml:7", "num_train_epochs must be positive and finite, got nan"),
        ("warmup_steps: .nan\n", (), "recipe.yaml:7", "warmup_steps must be finite, at least 0, got nan"),
        ("max_grad_norm: .nan\n", (), "recipe.yaml:7", "max_grad_norm must be at least 0, which is off, got nan"),
        ("dataloader_num_workers: -1\n", (), "recipe.yaml:7", "dataloader_num_workers must be at least 0, got -1"),
        ("lora_alpha: 0\n", (), "recipe.yaml:7", "lora_alpha must be at least 1, got 0"),
        ("importance_sampling_cap: .nan\n", (), "recipe.yaml:7", "importance_sampling_cap must be positive, got nan"),
        ("baseline: constant\nbaseline_constant: .inf\n", (), "recipe.yaml:8", "baseline_constant must be finite"),
        ("temperature: .nan\n", (), "recipe.yaml:7", "temperature must be positive and finite, got nan"),
        ("support_top_k: 0\n", (), "recipe.yaml:7", "support_top_k must be at least 1"),
        ("lora_dropout: 1\n", (), "recipe.yaml:7", "lora_dropout must lie in [0, 1)"),
        ("remove_unused_columns: true\n", (), "recipe.yaml:7", "remove_unused_columns"),
        ("neftune_noise_alpha: 5\n", (), "recipe.yaml:7", "neftune_noise_alpha is not supported"),
        ("", ("--report_to", "wandbb"), "--report_to", "did you mean 'wandb'?"),
        ("", ("--report_to", "mlflow"), "--report_to", "mlflow is not installed; pip install mlflow, or report_to: "),
        ("", ("--report_to", "flyte"), "--report_to", "flyte is not installed; pip install flytekit"),
        ("", ("--report_to", "none", "dagshub"), "--report_to", "pip install dagshub mlflow"),
        ("", ("--output_dir", "x", "extra"), "'extra'", "--output_dir has its value, 'x'; put a text with"),
        ("", ("--prompt_template", "Solve:", "{prompt}"), "'{prompt}'", "--prompt_template has its value, 'Solve:'"),
        ("", ("--seed", "1", "-x"), "'-x'", "a flag begins with two dashes; where it is a value, write --seed=-x"),
        ("", ("--use_peft", "-seed", "3"), "'-seed'", "a flag begins with two dashes"),
        ("", ("-x",), "'-x'", "expected --field value"),
        ("lr_scheduler_type: reduce_lr_on_plateau\n", (), "recipe.yaml:7", "reduce_lr_on_plateau"),
        ("lr_scheduler_type: greedy\n", (), "recipe.yaml:7", "greedy follows a loss"),
        ("lr_scheduler_type: cosine_with_min_lr\n", (), "recipe.yaml:7", "cosine_with_min_lr cannot be made with"),
        ("lr_scheduler_type: warmup_stable_decay\n", (), "recipe.yaml:7", "warmup_stable_decay cannot be made with"),
        ("lr_scheduler_kwargs: {min_lr: 0.1}\n", (), "recipe.yaml:7", "unexpected keyword argument 'min_lr'"),
        ("metric_for_best_model: loss\n", (), "recipe.yaml:7", "an evaluation has no 'loss'; it has reverse_kl"),
        ("test_size: 2\nmetric_for_best_model: accuracy\n", (), "recipe.yaml:8", "accuracy needs answers"),
        ("test_size: 2\neval_strategy: steps\nsave_strategy: best\n", (), "recipe.yaml:9",
         "save_strategy: best needs metric_for_best_model"),
    ],
)  # fmt: skip
def test_wrong_values(tmp_path: Path, lines: str, flags: tuple[str, ...], where: str, says: str) -> None:
    message = refusal(tmp_path, lines, *flags)
    assert message.startswith(f"{where}: ")
    assert says in message


@pytest.mark.parametrize(
    ("lines", "flags", "where", "says"),
    [
        ("divergence: full\nbaseline: value\n", (), "recipe.yaml:7", "baseline: value has no effect"),
        ("divergence: topk\n", ("--reward_clip_lambda", "0.1"), "recipe.yaml:7", "needs divergence: sampled"),
        ("temperature: 0.6\n", (), "recipe.yaml:7", "use temperature: 1 or set allow_biased_sampling: true"),
        ("top_p: 0.9\n", (), "recipe.yaml:7", "use top_p: 1 or set allow_biased_sampling: true"),
        ("", ("--top_k", "20"), "--top_k", "use top_k: 0 or set allow_biased_sampling: true"),
        ("temperature: 0\nallow_biased_sampling: true\n", (), "recipe.yaml:7", "temperature must be positive"),
        ("test_size: 3\ndataset_test_split: test\n", (), "recipe.yaml:7", "both name held-out prompts"),
        ("dataset_test_split: train\n", (), "recipe.yaml:7", "train holds rows of prompts that dataset_train_split:"),
        ("dataset_test_split: train[:10%]\n", (), "recipe.yaml:7", "name another, or set test_size in its place"),
        ("dataset_train_split: train[:9]\ndataset_test_split: train\n", (), "recipe.yaml:7", "holds rows of prompts"),
        ("dataset_mixture: [{dataset_name: a}]\n", (), "recipe.yaml:3", "name exactly one of them"),
        ("eval_strategy: epoch\n", (), "recipe.yaml:7", "evaluation needs held-out prompts"),
        ("eval_on_start: true\n", (), "recipe.yaml:7", "evaluation needs held-out prompts"),
        ("", ("--eval_strategy", "steps", "--eval_steps", "2"), "--eval_strategy", "evaluation needs held-out"),
        ("chat_template_kwargs: {a: 1}\n", (), "recipe.yaml:7", "no effect with chat_template: false"),
        ("continue_final_message: true\n", (), "recipe.yaml:7", "no effect with chat_template: false"),
        (
            "loss_compile: true\nteacher_backend: server\nteacher_server_url: http://a\n",
            ("--baseline", "none"),
            "recipe.yaml:7",
            "loss_compile has no effect with teacher_server_scores: logprobs",
        ),
        *(
            (
                "teacher_backend: server\n",
                ("--baseline", "none", "--teacher_server_url", url),
                "--teacher_server_url",
                says,
            )
            for url, says in (
                ("http://node7:80OO", "name it as http://host:port; Port could not be cast"),
                ("http://node7:65536", "Port out of range"),
                ("http://node7:0", "0 is no port"),
                ("localhost:8000", "it begins with neither http:// nor https://"),
                ("http://:8000", "it has no host"),
            )
        ),
    ],
)
def test_contradictions(tmp_path: Path, lines: str, flags: tuple[str, ...], where: str, says: str) -> None:
    message = refusal(tmp_path, lines, *flags)
    assert message.startswith(f"{where}: ")
    assert says in message


def test_a_compiled_loss_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = refusal(tmp_path, "loss_compile: true\n")
    assert message.startswith("recipe.yaml:7: loss_compile: true needs a C++ compiler, and no-such-compiler is not on")


def test_schedules_trackers_and_metrics_that_there_are(tmp_path: Path) -> None:
    lines = "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}\nwarmup_steps: 3\n"
    assert load(tmp_path, lines).training.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    for kind in ("linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts"):
        assert load(tmp_path, "", "--lr_scheduler_type", kind).training.lr_scheduler_type == kind
    for metric, greater in (("reverse_kl", False), ("eval_truncated", False), ("accuracy", True)):
        lines = f"answer_column: answer\nmetric_for_best_model: {metric}\n"
        assert load(tmp_path, lines).training.greater_is_better is greater
    template = "- {prompt} -x"
    assert load(tmp_path, "", "--prompt_template", template).data.prompt_template == template
    assert load(tmp_path, "", "--run_name=-x").training.run_name == "-x"
    assert load(tmp_path, "", "--baseline", "constant", "--baseline_constant", "-1").training.baseline_constant == -1


def test_amounts_that_decide_nothing_are_free(tmp_path: Path) -> None:
    """Steps between checkpoints that are not saved by steps, and epochs where steps are counted."""
    recipe = load(tmp_path, "save_strategy: no\nsave_steps: 0\nmax_steps: 3\nnum_train_epochs: 0\nmax_grad_norm: 0\n")
    assert (recipe.training.save_steps, recipe.training.num_train_epochs) == (0, 0)
    assert load(tmp_path, "save_steps: 0.5\nimportance_sampling_cap: .inf\n").training.save_steps == 0.5


def test_the_teacher_is_kept_in_what_training_multiplies_in(tmp_path: Path) -> None:
    for text, dtype in (("", None), ("bf16: true\n", "bfloat16"), ("bf16: true\nteacher_dtype: float32\n", "float32")):
        assert load(tmp_path, text).model.teacher_dtype == dtype


def test_biased_sampling_where_it_is_asked_for(tmp_path: Path) -> None:
    recipe = load(tmp_path, "temperature: 0.6\ntop_p: 0.95\ntop_k: 20\nallow_biased_sampling: true\n")
    assert (recipe.training.temperature, recipe.training.top_p, recipe.training.top_k) == (0.6, 0.95, 20)


@pytest.mark.parametrize("name", ["model_name_or_path", "teacher_model_name_or_path", "dataset_name"])
def test_a_run_does_not_write_where_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for folder in ("run", "./run/../run", str(tmp_path / "run"), "link"):
        message = refusal(tmp_path, f"{name}: {folder}\n", leave_out=(name,))
        assert message.startswith(
            f"recipe.yaml:3: output_dir: run is the folder of {name}, and the run would overwrite"
        )
    load(tmp_path, f"{name}: run/checkpoint-3\n", leave_out=(name,))
    load(tmp_path, f"{name}: other\n", "--output_dir", "other/run", leave_out=(name,))


def test_a_run_does_not_write_where_a_teacher_or_an_entry_is_read(tmp_path: Path) -> None:
    lines = "teachers: {one: {model_name_or_path: run}}\n"
    message = refusal(tmp_path, lines, leave_out=("teacher_model_name_or_path",))
    assert message.startswith(
        "recipe.yaml:3: output_dir: run is the folder of teachers: one: teacher_model_name_or_path"
    )
    lines = "dataset_mixture: [{dataset_name: a}, {dataset_name: run}]\n"
    assert "is the folder of dataset_name" in refusal(tmp_path, lines, leave_out=("dataset_name",))


@pytest.mark.parametrize("name", ["model_name_or_path", "teacher_model_name_or_path", "dataset_name", "output_dir"])
def test_what_a_recipe_must_name(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, leave_out=(name,))
    if name != "output_dir":  # transformers has a default for it
        assert name in message
    assert name in refusal(tmp_path, f"{name}: ''\n", leave_out=(name,))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{weight: 1}", "no dataset_name"),
        ("{dataset_name: a, weight: 0}", "positive number, got 0"),
        ("{dataset_name: a, weight: .nan}", "positive number, got nan"),
        ("{dataset_name: a, weight: .inf}", "positive number, got inf"),
        ("{dataset_name: a, weight: true}", "positive number, got True"),
        ("{dataset_name: a, prompt_colum: b}", "unknown field 'prompt_colum'; did you mean 'prompt_column'?"),
        ("{dataset_name: a, prompt_column: 3}", "prompt_column must be text, got 3"),
        ("{dataset_name: a, 3: b}", "unknown field '3'"),
        ("{dataset_name: a, prompt_column: }", "prompt_column must be text, got None"),
        ("{dataset_name: a, dataset_train_split: null}", "dataset_train_split must be text, got None"),
        ("{dataset_name: null}", "no dataset_name"),
        ("{dataset_name: a, weight: null}", "positive number, got None"),
    ],
)
def test_wrong_mixtures(tmp_path: Path, entry: str, says: str) -> None:
    message = refusal(tmp_path, f"dataset_mixture:\n- {entry}\n", leave_out=("dataset_name",))
    assert message.startswith("recipe.yaml:6: dataset_mixture: ")
    assert says in message


def test_a_mixtures_splits_and_nulls(tmp_path: Path) -> None:
    mixture = "dataset_mixture:\n- {dataset_name: a}\n- {dataset_name: b, dataset_train_split: test}\n"
    message = refusal(tmp_path, f"dataset_test_split: test\n{mixture}", leave_out=("dataset_name",))
    assert message.startswith("recipe.yaml:6: dataset_test_split: test holds rows of b that dataset_train_split: test")
    entry = "{dataset_name: a, answer_column: null, prompt_template: null}"
    lines = f"answer_column: answer\ndataset_mixture: [{entry}]\n"
    (source,) = load(tmp_path, lines, leave_out=("dataset_name",)).data.sources()
    assert (source["answer_column"], source["prompt_template"]) == (None, None)
    load(tmp_path, "dataset_train_split: train[:90%]\ndataset_test_split: train[90%:]\n")


def test_a_token_is_refused_and_never_written(tmp_path: Path) -> None:
    for lines, flags in (("hub_token: hf_secret\n", ()), ("", ("--hub_token", "hf_secret"))):
        message = refusal(tmp_path, lines, *flags)
        assert "HF_TOKEN" in message
        assert "hf_secret" not in message
    assert load(tmp_path, "push_to_hub: true\nhub_model_id: someone/model\n").resolved().get("hub_token") is None


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("seed: [1\n", "recipe.yaml:2", "not YAML"),
        ("seed: 1\n  max_steps: 2\n", "recipe.yaml:2", "not YAML"),
        ("seed: \x01\n", "recipe.yaml", "special characters are not allowed"),
        ("seed: 1\nmax_steps: 2\nseed: 3\n", "recipe.yaml:3", "seed stands twice"),
        ("dataset_mixture:\n- dataset_name: a\n  weight: 1\n  weight: 2\n", "recipe.yaml:4", "weight stands twice"),
        ("teachers:\n  a: {model_name_or_path: x}\n  a: {}\n", "recipe.yaml:3", "a stands twice"),
        ("seed: 1\nrun_name: 2025-06-31\n", "recipe.yaml:2", "2025-06-31: day is out of range for month; put a text"),
        ("lr_scheduler_kwargs:\n  a: 2025-06-31\n", "recipe.yaml:2", "day is out of range"),
        ("seed: !!int abc\n", "recipe.yaml:1", "invalid literal"),
        ("- a\n- b\n", "recipe.yaml", "a recipe is a list of `field: value` lines"),
        ("just text\n", "recipe.yaml", "a recipe is a list of `field: value` lines"),
        ("seed: 1\n---\nseed: 2\n", "recipe.yaml:2", "another document"),
        ("", "recipe.yaml", "model_name_or_path: missing"),
        ("? [a]\n: 1\n", "recipe.yaml:1", "unknown field"),
        ("seed: 1\nextends: nowhere.yaml\n", "recipe.yaml:2", "no such file"),
        ("extends: [a, b]\n", "recipe.yaml:1", "extends must be a file name"),
        ("extends: recipe.yaml\n", "recipe.yaml", "extends itself"),
        ("output_dir: !!python/object/apply:os.system ['touch bad']\n", "recipe.yaml:1", "python/object"),
        ("seed: 1\nx: !!python/object:argparse.Namespace {a: 1}\n", "recipe.yaml:2", "python/object"),
        ("seed: !!python/name:os.system\n", "recipe.yaml:1", "python/name"),
    ],
)
def test_files_that_are_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, where: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{where}: ")
    assert says in message
    assert not (tmp_path / "bad").exists()


def test_keys_and_dates_of_flags(tmp_path: Path) -> None:
    message = refusal(tmp_path, "", "--chat_template_kwargs", "{a: 1, a: 2}")
    assert message == "--chat_template_kwargs: a stands twice"
    assert refusal(tmp_path, "", "--seed", "2025-06-31").endswith("must be a whole number, got '2025-06-31'")
    assert load(tmp_path, "", "--run_name", "2025-06-31").training.run_name == "2025-06-31"


def test_a_key_may_stand_beside_one_that_is_merged(tmp_path: Path) -> None:
    lines = (
        "dataset_mixture:\n- &first {dataset_name: a, weight: 0.5}\n"
        "- &second {<<: *first, dataset_name: b}\n- {<<: *second, weight: 2}\n"
    )
    sources = load(tmp_path, lines, leave_out=("dataset_name",)).data.sources()
    assert [(source["dataset_name"], source["weight"]) for source in sources] == [("a", 0.5), ("b", 0.5), ("b", 2)]


def test_python_tags_are_refused_in_flags_too(tmp_path: Path) -> None:
    refusal(tmp_path, "", "--max_steps", "!!python/object/apply:os.getpid []")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("seed: 1 # für".encode("latin-1"))
    for name, reason in (("nowhere.yaml", "No such file"), (".", "Is a directory"), ("latin.yaml", "not UTF-8 text")):
        with pytest.raises(RecipeError, match=f"cannot read the recipe: {reason}"):
            load_recipe(tmp_path / name)


def test_a_cycle_of_extended_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    with pytest.raises(RecipeError, match=r"extends itself, by way of a\.yaml → b\.yaml$"):
        load_recipe(tmp_path / "a.yaml")


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_refuses_in_one_line(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    recipe = str(write_recipe())
    mistakes = [
        (["--lerning_rate", "1"], "--lerning_rate: unknown field 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--prompt_column", "question"], "has no column 'question'; it has prompt, solution, answer"),
        (["--model_name_or_path", str(tmp_path / "nowhere")], "model_name_or_path: cannot load a tokenizer from"),
    ]
    commands = [  # side by side, so each has a folder of its own to be kept out of
        [
            sys.executable,
            str(ROOT / "scripts" / "run_vopd.py"),
            recipe,
            "--output_dir",
            str(tmp_path / f"run{n}"),
            *flags,
        ]
        for n, (flags, _) in enumerate(mistakes)
    ]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ
        )
        for command in commands
    ]
    for process, (_, says) in zip(started, mistakes):
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 2, stderr
        last = stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert says in last
        assert [line for line in stderr.splitlines() if line.startswith("error: ")] == [last]
        assert "Traceback" not in stderr
    assert not list(tmp_path.glob("run*"))
