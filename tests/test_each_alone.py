"""Students and teachers whose sequences cannot share a row: the same loss and gradient, one sequence after another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, sharpened
from family_configs import FAMILIES
from launching import assert_same_run, launch, on_two_processes
from test_distributed import CASES, COMMON, TOLERANCE, few_problems, on_two  # noqa: F401
from test_trainer import build, gradients_of
from test_weights import with_adapters
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from vopd_recipes.models import check_models, runs_each_alone
from vopd_recipes.packing import pack
from vopd_recipes.rollout import Completion, Sampling, TransformersRollout

HYBRIDS = ["Qwen3.5", "Falcon-H1", "LFM2"]  # linear attention, a state space, a convolution


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[str], Path]:
    """Saves a random model of a family."""

    def save(family: str) -> Path:
        torch.manual_seed(1)
        path = tmp_path / family
        sharpened(AutoModelForCausalLM.from_config(FAMILIES[family].settings()), 4).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return save


def models(pair: TinyPair, folder: Callable[[str], Path], student: str | None, teacher: str | None) -> dict[str, str]:
    """Fields of a recipe; where no family is named the tiny pair's model stays."""
    return {
        "model_name_or_path": str(folder(student) if student else pair.student),
        "teacher_model_name_or_path": str(folder(teacher) if teacher else pair.teacher),
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("student", "teacher", "fields"),
    [
        *((hybrid, None, {}) for hybrid in HYBRIDS),
        (None, "Falcon-H1", {"teacher_offload": True}),
        ("Qwen3.5", "Jamba", {"divergence": "full"}),
        ("Qwen3.5", None, {"use_peft": True, "lora_r": 4}),
    ],
)
def test_a_micro_batch_equals_one_sequence_at_a_time(
    write_recipe, tiny_pair, folder, student, teacher, fields, checkpointing
) -> None:
    trainer = build(write_recipe(**models(tiny_pair, folder, student, teacher), **fields))
    if checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    check_models(trainer.student, trainer.teacher.model, trainer.train_dataset[0]["input_ids"])
    trainer.model.train()
    assert runs_each_alone(trainer.student) == bool(student)
    assert runs_each_alone(trainer.teacher.model) == bool(teacher)
    with torch.no_grad():  # LoRA's B begins at zero
        for name, parameter in trainer.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    samples = trainer.sample(list(trainer.train_dataset)[:5], step=0, generations=1)
    alone_loss, alone = gradients_of(trainer, pack(samples, len(samples)))
    assert max(gradient.abs().max() for gradient in alone.values()) > 0.01
    for count in (1, 2, 7):  # seven: two hold nothing
        loss, gradients = gradients_of(trainer, pack(samples, count))
        assert loss == pytest.approx(alone_loss, abs=1e-6)
        assert gradients.keys() == alone.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, alone[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", ["Qwen3.5", "Falcon-H1", "LFM2", "Mamba", "Mamba 2"])
def test_rows_that_end_take_their_states_along(folder, family, adapted) -> None:
    """Prompts of many lengths, and half of the tokens end a completion: the batch shrinks; each is as it is alone."""
    model = AutoModelForCausalLM.from_pretrained(folder(family)).eval()
    if adapted:
        model = with_adapters(model, target_modules=FAMILIES[family].adapted or "all-linear").eval()
    prompts = [list(range(40, 40 + length)) for length in (3, 17, 5, 9, 30, 1, 12, 8)]
    seeds = [1009 * i for i in range(len(prompts))]

    def sampled(batch_size: int) -> list[Completion]:
        engine = TransformersRollout(lambda: model, set(range(0, 250, 12)), 250, Sampling(), batch_size)
        return engine.generate(prompts, seeds, 24)

    together, alone = sampled(8), sampled(1)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    lengths = {len(one.token_ids) for one in alone}
    assert len(lengths) > 3 and max(lengths) > 12
    for prompt, one in zip(prompts, together):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + one.token_ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs = logits[:, :250].log_softmax(-1).gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logprobs), logprobs, atol=2e-4, rtol=0)


def test_it_is_said_once_and_trains(write_recipe, tiny_pair, folder, tmp_path, caplog) -> None:
    """From the command, in a process of its own: what is said, and that the sampler is the student at every step."""
    run = launch(write_recipe(**models(tiny_pair, folder, "Qwen3.5", None)), tmp_path / "run")
    (line,) = [line for line in run.output.splitlines() if "its sequences run one by one" in line]
    assert line.startswith("student ") and "carry something from one sequence of a packed row into the next" in line
    gaps = [entry["rollout/logprob_gap"] for entry in run.history if "loss" in entry]
    assert len(gaps) == 2 and max(gaps) < 1e-5


@pytest.mark.slow
def test_slices_of_fully_shard(write_recipe, tiny_pair, folder, tmp_path) -> None:
    """Slow: two processes. One padded forward, whatever the number of sequences on each."""
    recipe = write_recipe(**models(tiny_pair, folder, "Qwen3.5", "Falcon-H1"))
    seen = on_two_processes("fsdp2", recipe, tmp_path / "seen.json")
    assert seen["largest_gradient"] > 0.01
    assert seen["loss"] < 1e-6 and seen["gradients"] < 2e-6


@pytest.mark.slow
def test_two_processes_equal_one(write_recipe, tiny_pair, folder, tmp_path, few_problems) -> None:  # noqa: F811
    """Slow: three launches. Ranks have other numbers of sequences, one of them none; under DDP each runs its own one
    by one, under ZeRO-3 all in one padded forward.
    """
    fields = {**COMMON, **CASES["masked"], "dataset_name": str(few_problems)}
    recipe = write_recipe(**models(tiny_pair, folder, "Falcon-H1", "Qwen3.5"), **fields)
    reference = launch(recipe, tmp_path / "one", gradient_accumulation_steps=4)
    for layout in ("ddp", "zero3"):
        run = on_two(recipe, tmp_path / layout, layout)
        assert ("side by side" if layout == "zero3" else "one by one") in run.output
        assert_same_run(run, reference, TOLERANCE)
