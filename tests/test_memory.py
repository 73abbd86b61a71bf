"""What the planner computes is what is allocated.

Weights, gradients and optimiser states are compared with real ones byte for byte, in one process and in three that
DeepSpeed and PyTorch's FSDP2 shard; activations with those of a real forward and backward. The sharded comparison
starts processes and takes some 20 s: it is the only check of how ZeRO divides and pads.
"""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyPair
from family_configs import FAMILIES, Family
from launching import REPOSITORY, execute

from vopd_recipes.models import PACKED_SDPA, load_student, packed_arguments
from vopd_recipes.planner.activations import count_training, inference_peak, training_activations
from vopd_recipes.planner.architectures import MODEL_CONFIGS, Architecture, Lora, build, parameters_of
from vopd_recipes.planner.fitting import smallest_change, table, verdict
from vopd_recipes.planner.items import PHASES
from vopd_recipes.planner.memory import GB, plan
from vopd_recipes.planner.setup import read_setup
from vopd_recipes.planner.states import Setup, training_states
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.tiny import pair as tiny

LORA = Lora(4, 8, "all-linear")

# The totals of the published checkpoints.
PUBLISHED = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "allenai/Olmo-3-7B-Think": 7_298_011_136,
    "allenai/Olmo-3-1025-7B": 7_298_011_136,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}


def make_setup(student: Architecture, **fields: Any) -> Setup:
    """One GPU, no teacher, little of everything."""
    values: dict[str, Any] = {
        "gpus": 1, "gpu_bytes": 80 * GB, "sharding": "none", "student": student, "teacher": None, "half": None,
        "optim": "adamw_torch_fused", "checkpointing": False, "prompts": 1, "generations": 1, "accumulation": 1,
        "prompt_tokens": 8, "completion_tokens": 8, "sampler": "transformers", "sampler_rows": 4, "vllm_share": 0.3,
        "vllm_parallel": 1, "vllm_itemsize": 2, "vllm_length": 16, "teacher_offload": False,
    }  # fmt: skip
    return Setup(**{**values, **fields})


def pair_setup(student: str, teacher: str, gpus: int = 8, **fields: Any) -> Setup:
    """A full fine-tuning recipe in bfloat16: 4 prompts of 1k and completions of 8k tokens a micro-batch."""
    values: dict[str, Any] = {
        "gpus": gpus, "half": "bfloat16", "teacher": Architecture(teacher, dtype="bfloat16"), "checkpointing": True,
        "prompts": 4, "accumulation": 4, "prompt_tokens": 1024, "completion_tokens": 8192, "sampler": "vllm",
        "vllm_length": 9216, "sharding": "zero2",
    }  # fmt: skip
    return make_setup(Architecture(student, dtype="bfloat16"), **{**values, **fields})


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_configurations_build_the_published_models(name: str) -> None:
    assert sum(parameter.numel for parameter in parameters_of(Architecture(name))) == PUBLISHED[name]


def test_every_configuration_is_checked_and_says_where_it_comes_from() -> None:
    files = {path.stem.replace("--", "/"): json.loads(path.read_text()) for path in MODEL_CONFIGS.glob("*.json")}
    assert files.keys() == PUBLISHED.keys()
    for name, config in files.items():
        assert config["_source"] == f"https://huggingface.co/{name}/blob/main/config.json"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_states_are_those_of_a_real_step(tiny_pair: TinyPair, dtype: str, lora: Lora | None, optim: str) -> None:
    architecture = Architecture(str(tiny_pair.teacher), None, dtype, lora)
    model: Any = build(architecture, architecture.config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained) if optim == "sgd" else torch.optim.AdamW(trained, fused=True)
    tokens = torch.arange(12)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    gradients = sum(parameter.grad.nbytes for parameter in trained)
    optimizer.step()
    states = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value is not None)
    planned = training_states(make_setup(architecture, optim=optim))
    assert planned.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert planned.gradients == gradients
    assert planned.optimizer == states


def test_adapters_are_those_that_training_adds(tiny_pair: TinyPair, write_recipe: Any) -> None:
    recipe = write_recipe(use_peft=True, lora_r=4, lora_alpha=8)
    student = load_student(load_recipe(recipe).model)
    architecture = read_setup(recipe, [], 1, 80 * GB).student
    assert [(p.numel, p.trained) for p in parameters_of(architecture)] == [
        (parameter.numel(), parameter.requires_grad) for parameter in student.parameters()
    ]


@pytest.mark.slow
def test_sharded_states_are_those_of_three_processes(tiny_pair: TinyPair) -> None:
    """No parameter group of this model divides by 2·3, and few parameters by 3."""
    worker = str(Path(__file__).with_name("zero_states.py"))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", worker]
    done = execute([*words, str(tiny_pair.student)])
    assert done.returncode == 0, done.stderr[-4000:]
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(cases) == 11
    for measured in cases:
        stage, half, lora, in_float32 = case = measured.pop("case")
        student = Architecture(str(tiny_pair.student), lora=LORA if lora else None)
        layout = {"sharding": "fsdp2" if stage == 4 else f"zero{stage}", "half": "bfloat16" if half else None}
        planned = training_states(make_setup(student, gpus=3, accumulates_float32=in_float32, **layout))
        assert {name: getattr(planned, name) for name in measured} == measured, case


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine layers, so that most are extrapolated."""
    folder = tmp_path_factory.mktemp("deep")
    tiny.save(tiny.tiny_qwen3(64, 9, seed=1), tiny.byte_tokenizer(), folder)
    return folder


@pytest.mark.parametrize(
    ("dtype", "autocast", "checkpointing", "lora"),
    [
        ("float32", None, False, None),
        ("bfloat16", None, True, None),
        ("float32", "bfloat16", False, None),
        ("float32", "bfloat16", True, None),
        ("bfloat16", None, False, LORA),
        ("bfloat16", "bfloat16", True, LORA),
    ],
)
def test_activations_are_those_of_a_real_backward(
    deep_model: Path, dtype: str, autocast: str | None, checkpointing: bool, lora: Lora | None
) -> None:
    """Allocations of the real model on a packed row, to 2 %."""
    architecture, lengths = Architecture(str(deep_model), None, dtype, lora), (96, 160, 64)
    model: Any = build(architecture, architecture.config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    real = count_training(model.train(), lengths, autocast)
    planned = training_activations(architecture, lengths, autocast, checkpointing)
    assert list(vars(planned).values()) == pytest.approx(list(real), rel=0.02)


def saved_bytes(model: Any, lengths: tuple[int, ...]) -> int:
    """What autograd keeps for the backward pass, parameters aside, by its own account."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    row = torch.zeros(1, sum(lengths), dtype=torch.long)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = packed_arguments(PACKED_SDPA, lengths, row.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.model(input_ids=row, position_ids=positions, use_cache=False, **packed)
    return sum(saved.values()) + output.last_hidden_state.nbytes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_saves(deep_model: Path, checkpointing: bool) -> None:
    """An account by other means, saved-tensor hooks, which do not see the last result. To 10 %."""
    architecture, lengths = Architecture(str(deep_model)), (96, 160, 64)
    model: Any = build(architecture, architecture.config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    planned = training_activations(architecture, lengths, None, checkpointing)
    assert planned.at_loss == pytest.approx(saved_bytes(model.train(), lengths), rel=0.1)


def test_checkpointing_keeps_a_layer_and_the_inputs_of_the_others() -> None:
    architecture, tokens = Architecture("Qwen/Qwen3-8B", dtype="bfloat16"), 8192
    kept = training_activations(architecture, (tokens,), None, checkpointing=False)
    checkpointed = training_activations(architecture, (tokens,), None, checkpointing=True)
    inputs = 36 * tokens * 4096 * 2
    assert inputs < checkpointed.at_loss < 1.25 * inputs
    assert inputs + (kept.at_loss / 36) < checkpointed.backward < inputs + 2 * kept.at_loss / 36


def test_autocast_keeps_copies_of_trained_weights_only_under_a_forward() -> None:
    architecture = Architecture("Qwen/Qwen3-0.6B", dtype="float32")
    frozen = inference_peak(architecture, (64,), "bfloat16", frozen=True)
    trained = inference_peak(architecture, (64,), "bfloat16", frozen=False)
    linear = 2 * (596_049_920 - 151_936 * 1024)
    assert trained - frozen == pytest.approx(linear, rel=0.05)


def test_a_packed_row_costs_as_many_tokens_as_it_has() -> None:
    architecture = Architecture("Qwen/Qwen3-1.7B", dtype="bfloat16")
    alone = training_activations(architecture, (4096,), None, True)
    packed = training_activations(architecture, (2048, 2048), None, True)
    assert packed.backward == pytest.approx(alone.backward, rel=0.1)


@pytest.mark.parametrize(
    "family", [Family("gemma2", {"query_pre_attn_scalar": 32}), Family("gpt2"), Family("gpt_neox")]
)
def test_models_of_other_attention_are_planned(tmp_path: Path, family: Family) -> None:
    """Scores that sdpa cannot cap, and configurations that do not count key-value heads."""
    family.settings().save_pretrained(tmp_path)
    model = Architecture(str(tmp_path))
    sampled = make_setup(model, teacher=model, sampler="vllm")
    assert all(plan(setup).peak > 0 for setup in (sampled, replace(sampled, sampler="transformers")))
    assert smallest_change(replace(sampled, gpu_bytes=GB)) is None


def test_what_cannot_be_planned_for_is_one_line(tmp_path: Path, caplog: Any) -> None:
    """Experts and positions that depend on data, and a cache without attention."""
    FAMILIES["gpt-oss"].settings().save_pretrained(tmp_path / "experts")
    Family("opt").settings().save_pretrained(tmp_path / "positions")
    Family("mamba", {"num_attention_heads": None, "num_key_value_heads": None}).settings().save_pretrained(
        tmp_path / "states"
    )
    for name in ("experts", "positions"):
        with pytest.raises(RecipeError, match=f"{name}: cannot be planned for: ") as caught:
            plan(make_setup(Architecture(str(tmp_path / name))))
        assert "\n" not in str(caught.value)
    assert not [record for record in caplog.records if record.name.startswith("torch")]
    with pytest.raises(RecipeError, match="states: cannot be planned for: it has no attention heads"):
        plan(make_setup(Architecture(str(tmp_path / "states")), sampler="vllm"))


def test_phases_hold_what_is_there_at_the_time() -> None:
    result = plan(pair_setup("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-8B"))
    items = {item.name: item for item in result.items}
    weights, teacher = items["student: weights"], items["teacher: weights"]
    assert weights.rollout == weights.backward == 2 * 1_720_574_976
    assert teacher.rollout == teacher.update == 2 * 8_190_735_360
    assert items["student: optimiser state"].update == pytest.approx(12 * 1_720_574_976 / 8, rel=1e-6)
    assert items["student: gradients"].rollout == 0
    vllm = next(item for name, item in items.items() if name.startswith("vLLM"))
    assert vllm.rollout == 24 * GB and vllm.loss == vllm.backward == GB
    assert result.peak == max(map(result.need, PHASES))


def test_offloading_moves_what_it_says() -> None:
    setup = pair_setup("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-8B")
    here, offloaded = plan(setup), plan(replace(setup, teacher_offload=True))
    head = 2 * 151_936 * 4096
    teacher = next(item for item in offloaded.items if item.name == "teacher: weights")
    assert (teacher.rollout, teacher.teacher, teacher.backward) == (head, 2 * 8_190_735_360, head)
    assert offloaded.need("backward") < here.need("backward")
    sizes = [2 * parameter.numel for parameter in parameters_of(setup.teacher)]
    assert sum(sizes) == 2 * 8_190_735_360  # of which each is pinned as the next power of two
    assert (here.host_bytes, offloaded.host_bytes) == (0, sum(2 ** math.ceil(math.log2(size)) for size in sizes))
    offloading = replace(setup, optimizer_offload=True)
    states = training_states(replace(offloading, accumulates_float32=False))
    assert (states.gradients, states.optimizer) == (0, 0)
    states = training_states(offloading)  # DeepSpeed's ZeRO-2 adds up in float32 on the GPU
    assert (states.gradients, states.optimizer) == (4 * states.part, 0)
    assert training_states(replace(offloading, sharding="zero3")).gradients == 0


@pytest.mark.parametrize("sharding", ["zero3", "fsdp2"])
def test_offloaded_slices_are_on_the_gpu_only_while_they_are_gathered(sharding: str) -> None:
    setup = pair_setup("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-8B", sharding=sharding)
    here, offloaded = plan(setup), plan(replace(setup, teacher_offload=True))
    before, after = (
        next(item for item in result.items if item.name == "teacher: weights") for result in (here, offloaded)
    )
    slices = before.rollout
    assert slices == pytest.approx(2 * 8_190_735_360 / 8, rel=0.001)  # and the small parameters that ZeRO-3 keeps
    assert [getattr(before, phase) - getattr(after, phase) for phase in PHASES] == [slices] * 5
    assert (after.rollout, after.loss, after.update) == (0, 2 * 151_936 * 4096, 0)
    assert (here.host_bytes, offloaded.host_bytes) == (0, 8_190_735_360 // 4)


def test_zero_stages_need_less_and_less() -> None:
    setup = pair_setup("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B")
    needs = [plan(replace(setup, sharding=sharding)).peak for sharding in ("none", "zero1", "zero2", "zero3")]
    assert needs == sorted(needs, reverse=True)


def test_the_smallest_change_is_one_where_one_suffices() -> None:
    setup = pair_setup("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-8B", checkpointing=False)
    assert not plan(setup).fits
    words, fitting = smallest_change(setup) or ([], None)
    assert words == ["gradient_checkpointing: true"]
    assert fitting is not None and fitting.fits


def test_a_combination_is_proposed_where_no_single_change_suffices() -> None:
    setup = pair_setup("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-32B", checkpointing=False)
    words, fitting = smallest_change(setup) or ([], None)
    assert len(words) == 2 and fitting is not None and fitting.fits
    for changed in (
        replace(setup, checkpointing=True),
        replace(setup, sharding="zero3"),
        replace(setup, prompts=1, accumulation=16),
    ):
        assert not plan(changed).fits


def test_nothing_helps_where_nothing_can() -> None:
    setup = pair_setup("Qwen/Qwen3-32B", "Qwen/Qwen3-32B", gpus=1, gpu_bytes=8 * GB)
    assert smallest_change(setup) is None


def test_a_cache_without_room_for_one_sequence_does_not_fit() -> None:
    setup = pair_setup("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", vllm_share=0.2)
    result = plan(setup)
    assert result.starved and result.peak <= setup.gpu_bytes and not result.fits
    assert "one sequence may have 9216" in verdict(result)
    words, _ = smallest_change(setup) or ([], None)
    assert words == ["vllm_gpu_memory_utilization: 0.25"]


def test_an_evaluation_may_sample_more_at_a_time_than_a_step(write_recipe: Any) -> None:
    """By transformers: a step's window is 2 × 2 completions; `rollout_batch_size` bounds both."""

    def cache(gpus: int = 1, **fields: Any) -> int:
        setup = read_setup(write_recipe(rollout_batch_size=16, **fields), [], gpus, 80 * GB)
        (found,) = (item.rollout for item in plan(setup).items if item.name.startswith("sampling: cache"))
        return found

    evaluated = {"eval_strategy": "steps", "eval_steps": 5, "num_generations_eval": 2}
    step = cache()
    assert cache(test_size=6) == step == cache(test_size=1, **evaluated) == cache(gpus=3, test_size=6, **evaluated)
    assert cache(test_size=6, **evaluated) > step
    assert cache(test_size=6, max_test_prompts=2, **evaluated) == step
    batch = cache(test_size=8, **evaluated)
    assert batch == cache(test_size=80, **evaluated) == cache(gpus=4, dataset_test_split="test", **evaluated)


def test_cache_tokens_are_those_of_the_share() -> None:
    """0.3 · 80 GB less the weights and 2 GB, at 2 · 36 layers · 8 heads · 128 · 2 bytes a token."""
    result = plan(pair_setup("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"))
    assert result.cache_tokens == (24 * GB - 2 * 8_190_735_360 - 2 * GB) // (2 * 36 * 8 * 128 * 2)


@pytest.fixture
def gpu_recipe(tmp_path: Path) -> Path:
    """What no machine without GPUs could run."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model_name_or_path: Qwen/Qwen3-1.7B-Base\nteacher_model_name_or_path: Qwen/Qwen3-8B\ndtype: bfloat16\n"
        "bf16: true\ntf32: true\nreport_to: wandb\ndataset_name: org/prompts\nmax_completion_length: 4096\n"
        "rollout_backend: vllm\ngradient_checkpointing: true\nper_device_train_batch_size: 2\n"
        f"deepspeed: {REPOSITORY}/recipes/deepspeed/zero2.json\noutput_dir: {tmp_path}/run\n"
    )
    return path


def test_a_gpu_recipe_is_planned_without_a_gpu(gpu_recipe: Path) -> None:
    setup = read_setup(gpu_recipe, ["--per_device_train_batch_size", "3", "--use_cpu", "false"], 8, 80 * GB)
    assert (setup.sharding, setup.half, setup.prompts, setup.sampler) == ("zero2", "bfloat16", 3, "vllm")
    assert setup.sequences == (1024 + 4096 - 1,) * 3
    assert read_setup(gpu_recipe, [], 8, 80 * GB, "fsdp2").sharding == "fsdp2"
    assert read_setup(gpu_recipe, ["--deepspeed", "null"], 8, 80 * GB).sharding == "none"
    assert setup.accumulates_float32 and not setup.loss_compile
    compiled = read_setup(gpu_recipe, ["--loss_compile", "true"], 8, 80 * GB)
    assert plan(compiled).need("loss") > plan(replace(compiled, loss_compile=False)).need("loss")
    configuration = json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}})
    offloading = gpu_recipe.with_name("zero.json")
    offloading.write_text(configuration)
    setup = read_setup(gpu_recipe, ["--deepspeed", str(offloading)], 8, 80 * GB)
    assert (setup.sharding, setup.optimizer_offload, setup.accumulates_float32) == ("zero3", True, False)


def run_script(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The script's exit status, without the seconds that imports take in a process of its own."""
    spec = importlib.util.spec_from_file_location("plan_memory", REPOSITORY / "scripts" / "plan_memory.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["plan_memory.py", *words])
    try:
        script.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_script_says_whether_it_fits(
    gpu_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(monkeypatch, str(gpu_recipe), "--gpus", "8", "--gpu_memory", "80") == 0
    output = capsys.readouterr().out
    assert "student: Qwen/Qwen3-1.7B-Base, 1,720,574,976 parameters, 1,720,574,976 trained" in output
    assert "fits: the" in output and "| total" in output
    small = [str(gpu_recipe), "--gpus=8", "--gpu_memory=30"]
    assert run_script(monkeypatch, *small) == 1
    assert "smallest change that fits:\n  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "unknown field 'learning_rat'"),
        (["--gpus", "0"], "must be positive"),
        (["--gpus", "some"], "argument --gpus"),
        (["--sharding", "zero9"], "argument --sharding"),
        (["--optim", "adafactor"], "adafactor is not planned for"),
        (["--vllm_tensor_parallel_size", "3"], "must divide the 8 GPUs"),
        (["--deepspeed", "absent.json"], "cannot read absent.json"),
        (["--model_name_or_path", "org/absent"], "no model configuration"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    gpu_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert run_script(monkeypatch, str(gpu_recipe), *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_the_table_adds_up() -> None:
    result = plan(pair_setup("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-32B", sharding="zero3"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(result).splitlines()]
    header, _, *items, total = rows
    assert header[1:] == list(PHASES)
    for column in range(1, len(header)):
        summed = sum(float(row[column] or 0) for row in items)
        assert summed == pytest.approx(float(total[column]), abs=0.005 * (len(items) + 1))
