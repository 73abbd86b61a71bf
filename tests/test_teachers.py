"""Several teachers, teachers that read more than the student, and a student's own base: each by its numbers.

Two teachers that are one model give what that one gives; a batch of two teachers is the sum of two batches of one; a
teacher's prompt of another length gives what the plain model says there; one copy of the weights equals two.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import sharpened
from launching import (
    REPOSITORY,
    assert_same_run,
    launch,
    needs_vllm,
)
from safetensors.torch import load_file
from teacher_service import VLLMServer
from test_trainer import gradients_of
from transformers import AutoModelForCausalLM

from vopd_recipes.models import is_own_base, load_student, load_teacher, load_tokenizer
from vopd_recipes.packing import pack
from vopd_recipes.planner import explain, plan, read_setup
from vopd_recipes.planner.items import Item
from vopd_recipes.prompts import build_prompts, read_by, read_rows
from vopd_recipes.recipe import DataConfig, RecipeError, load_recipe
from vopd_recipes.teacher import LocalTeacher, OwnBase, SeveralTeachers, connect_to_teacher, teacher_tokenizer
from vopd_recipes.tiny import pair as tiny
from vopd_recipes.tiny import problems as arithmetic
from vopd_recipes.training import VOPDTrainer
from vopd_recipes.training.announcement import beginning
from vopd_recipes.training.command import train
from vopd_recipes.training.preparation import check_all

ESTIMATORS = [
    {"baseline": "value"},
    {"baseline": "optimal"},
    {"divergence": "full"},
    {"divergence": "rao_blackwell", "support_top_k": 5},
]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """Another teacher, 48 wide, with a vocabulary of another padding."""
    folder = tmp_path_factory.mktemp("second") / "teacher"
    tiny.save(sharpened(tiny.tiny_qwen3(48, 1, seed=5, vocab_size=272)), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of another seed."""
    folder = tmp_path_factory.mktemp("others")
    arithmetic.write(folder, *arithmetic.split("chain", train=10, test=4, seed=7))
    return folder


@pytest.fixture
def several(write_recipe, tiny_pair, second, problem_folder, others) -> Callable[..., Path]:
    """A recipe of two teachers, `first` of the usual problems and `second` of others."""

    def write(first: dict | None = None, other: dict | None = None, **fields: object) -> Path:
        first = {"teacher_model_name_or_path": str(tiny_pair.teacher), **(first or {})}
        other = {"teacher_model_name_or_path": str(second), **(other or {})}
        return write_recipe(
            **{
                "teacher_model_name_or_path": None,
                "dataset_name": None,
                "teachers": {"first": first, "second": other},
                "dataset_mixture": [
                    {"dataset_name": str(problem_folder), "teacher": "first"},
                    {"dataset_name": str(others), "teacher": "second"},
                ],
                **fields,
            }
        )

    return write


def build(path: Path) -> VOPDTrainer:
    """The trainer of a recipe with local teachers."""
    recipe = load_recipe(path)
    tokenizer = load_tokenizer(recipe.model)
    rows = read_rows(recipe.data, recipe.training.seed, recipe.training.teachers or ())
    prompts = build_prompts(rows, recipe.data, tokenizer)
    torch.manual_seed(recipe.training.seed)
    return VOPDTrainer(
        load_student(recipe.model),
        {name: load_teacher(one.model) for name, one in recipe.by_teacher().items()},
        recipe.training,
        processing_class=tokenizer,
        train_dataset=prompts.train,
        eval_dataset=prompts.test,
    )


def refusal(call, *args, error=RecipeError, **kwargs) -> str:
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mixed_samples(trainer: VOPDTrainer):
    """Completions of three prompts of each teacher, one after the other."""
    rows = list(trainer.train_dataset)
    chosen = [[row for row in rows if row["teacher"] == name][:3] for name in ("first", "second")]
    return trainer.sample([row for pair in zip(*chosen) for row in pair], step=0, generations=1)


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_two_teachers_that_are_one_model_equal_that_one(several, write_recipe, tiny_pair, others, estimator) -> None:
    same = {"teacher_model_name_or_path": str(tiny_pair.teacher)}
    trainer = build(several(other=same, **estimator))
    samples = mixed_samples(trainer)
    assert isinstance(trainer.teacher, SeveralTeachers)
    for count in (1, 2, 6):
        batches = pack(samples, count)
        loss, gradients = gradients_of(trainer, batches)
        own, trainer.teacher = trainer.teacher, trainer.teachers["first"]
        expected_loss, expected = gradients_of(trainer, batches)
        trainer.teacher = own
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_batch_of_two_teachers_is_the_sum_of_two_batches_of_one(several, estimator) -> None:
    """Of different widths and vocabularies; the statistics come back in the order of the student's row."""
    trainer = build(several(**estimator))
    samples = mixed_samples(trainer)
    (row,) = pack(samples, 1)
    assert len({sample.teacher for sample in row.samples}) == 2
    loss, gradients = gradients_of(trainer, [row])
    recorded = {id(sample): sample.statistics["reverse_kl"] for sample in row.samples}
    tokens, total = torch.tensor(len(row.targets)), 0.0
    summed = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    whole = trainer.teacher
    for name, teacher in trainer.teachers.items():
        own = [sample for sample in row.samples if sample.teacher == name]
        (batch,) = pack(own, 1)
        trainer.teacher = teacher
        trainer.model.zero_grad()
        (view,) = teacher.views([batch])
        part = trainer.compute_loss(trainer.model, {"micro_batch": batch, "teacher_view": view}, False, tokens)
        part.backward()
        total += part.item()
        for key, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                summed[key] += parameter.grad
        for sample in batch.samples:
            assert sample.statistics["reverse_kl"] == pytest.approx(recorded[id(sample)], abs=1e-5)
    trainer.teacher = whole
    assert loss == pytest.approx(total, abs=1e-6)
    for name, gradient in summed.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-5)


def test_teachers_take_turns_on_the_device(several) -> None:
    """With teacher_offload each visits once a window, and says the same."""
    at_home, visiting = build(several()), build(several(teacher_offload=True))
    samples = mixed_samples(at_home)
    loss, gradients = gradients_of(at_home, pack(samples, 2))
    visiting_loss, visiting_gradients = gradients_of(visiting, pack(samples, 2))
    assert visiting_loss == loss
    for name, gradient in gradients.items():
        assert torch.equal(visiting_gradients[name], gradient), name


def test_every_teacher_has_its_metrics(several, tmp_path) -> None:
    path = several(
        dataset_test_split="test", eval_strategy="steps", eval_steps=2, answer_column="answer", max_steps=2,
        per_device_train_batch_size=8,
    )  # fmt: skip
    train(load_recipe(path))
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    line = next(line for line in history if "loss" in line)
    for name in ("first", "second"):
        for metric in ("reverse_kl", "reward/mean", "completion/length"):
            assert f"{metric}/{name}" in line
    low, high = sorted(line[f"reverse_kl/{name}"] for name in ("first", "second"))
    assert low <= line["reverse_kl"] <= high
    held_out = next(line for line in history if "eval_reverse_kl" in line)
    for name in ("first", "second"):
        assert held_out[f"eval_reverse_kl/{name}"] > 0
        assert 0 <= held_out[f"eval_accuracy/{name}"] <= 1


def test_a_run_of_two_teachers_resumes_as_if_undisturbed(several, tmp_path) -> None:
    path = several(max_steps=4, save_steps=2, per_device_train_batch_size=4)
    folder = tmp_path / "run"
    train(load_recipe(path))
    whole = load_file(folder / "model.safetensors")
    shutil.rmtree(folder / "checkpoint-4")
    for late in ("trainer_state.json", "model.safetensors"):
        (folder / late).unlink()
    train(load_recipe(path))
    resumed = load_file(folder / "model.safetensors")
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


# A teacher that reads more -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_teacher_that_reads_the_students_prompt_changes_nothing(write_recipe, estimator) -> None:
    plain, same = (
        build(write_recipe(**estimator)),
        build(write_recipe(teacher_prompt_template="{prompt}", **estimator)),
    )
    assert isinstance(plain.teacher, LocalTeacher)
    assert isinstance(same.teacher, SeveralTeachers)
    rows = list(same.train_dataset)[:6]
    samples = same.sample(rows, step=0, generations=1)
    assert [s.completion_ids for s in samples] == [
        s.completion_ids for s in plain.sample(list(plain.train_dataset)[:6], step=0, generations=1)
    ]
    for count in (1, 3):
        loss, gradients = gradients_of(plain, pack(samples, count))
        same_loss, same_gradients = gradients_of(same, pack(samples, count))
        assert same_loss == loss
        for name, gradient in gradients.items():
            assert torch.equal(same_gradients[name], gradient), name


def test_a_longer_prompt_of_the_teachers_scores_the_same_completion(write_recipe, tiny_pair, tokenizer) -> None:
    """The row's log-probabilities are those of the plain model on `its prompt + completion`, wherever it stands."""
    trainer = build(
        write_recipe(teacher_prompt_template="The answer is {answer}.\n{prompt}", max_completion_length=12)
    )
    rows = list(trainer.train_dataset)[:5]
    assert all(tokenizer.decode(row["teacher_input_ids"]).startswith("The answer is ") for row in rows)
    samples = trainer.sample(rows, step=0, generations=1)
    (row,) = pack(samples, 1)
    (view,) = trainer.teacher.views([row])
    weights = torch.zeros(len(row.targets))
    _, stats = trainer.student_loss(trainer.model, row, view(), weights, False)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_pair.teacher).eval()
    expected = []
    for sample in row.samples:
        ids = torch.tensor([sample.teacher_prompt_ids + sample.completion_ids])
        with torch.no_grad():
            logp = teacher(ids).logits[0, len(sample.teacher_prompt_ids) - 1 : -1].log_softmax(-1)
        expected.append(logp.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0])
    torch.testing.assert_close(stats.teacher_logprob, torch.cat(expected), atol=1e-5, rtol=0)


def test_what_teachers_read(tmp_path, tokenizer) -> None:
    """Templates over columns, the gold answer by its name, system prompts, conversations; the student sees none."""

    def ids(config: DataConfig) -> tuple[str, str]:
        row = build_prompts(read_rows(config, 0), config, tokenizer).train[0]
        return tokenizer.decode(row["input_ids"]), tokenizer.decode(row["teacher_input_ids"])

    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "1+1=", "gold": "2", "answer": "seven", "working": "one and one"}) + "\n")
    plain = {"dataset_name": str(path), "prompt_column": "question", "answer_column": "gold"}
    template = "{question} is {answer}, for {working}; {prompt}"
    student, teacher = ids(DataConfig(**plain, prompt_template="Q: {question}", teacher_prompt_template=template))
    assert (student, teacher) == ("Q: 1+1=", "1+1= is 2, for one and one; 1+1=")
    student, teacher = ids(DataConfig(**plain, chat_template=True, teacher_system_prompt="It is {gold}."))
    assert student == "user: 1+1=\nassistant: "
    assert teacher == "system: It is 2.\n" + student
    student, teacher = ids(DataConfig(**plain, teacher_prompt_template="{prompt}{answer}", teacher_chat_template=True))
    assert (student, teacher) == ("1+1=", "user: 1+1=2\nassistant: ")

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]
    path.write_text(json.dumps({"prompt": messages, "answer": "2"}) + "\n")
    chat = {"dataset_name": str(path), "answer_column": "answer", "chat_template": True}
    student, teacher = ids(
        DataConfig(**chat, teacher_prompt_template="{prompt} (= {answer})", teacher_system_prompt="Know it.")
    )
    assert student == "system: Be brief.\nuser: 1+1=\nassistant: "
    assert teacher == "system: Know it.\nuser: 1+1= (= 2)\nassistant: "


def test_teacher_prompts_that_are_too_long_are_dropped_with_their_rows(write_recipe, caplog) -> None:
    fields = {"teacher_prompt_template": "{solution}{prompt}", "max_prompt_length": 40}
    trainer_rows = load_recipe(write_recipe(**fields, teacher_max_prompt_length=64))
    tokenizer = load_tokenizer(trainer_rows.model)
    prompts = build_prompts(read_rows(trainer_rows.data, 0), trainer_rows.data, tokenizer)
    assert max(map(len, prompts.train["teacher_input_ids"])) <= 64
    assert max(map(len, prompts.train["input_ids"])) <= 40
    if prompts.dropped:
        assert "teacher_max_prompt_length" in caplog.text


# One copy of the weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_one_copy_equals_two(write_recipe, tiny_pair, estimator) -> None:
    """To the bit, after steps that have moved the adapters."""
    path = write_recipe(
        teacher_model_name_or_path=str(tiny_pair.student), use_peft=True, lora_r=4,
        teacher_prompt_template="{answer} {prompt}", **estimator,
    )  # fmt: skip
    recipe = load_recipe(path)
    two = build(path)
    tokenizer = load_tokenizer(recipe.model)
    torch.manual_seed(recipe.training.seed)
    student = load_student(recipe.model)
    data = {"train_dataset": two.train_dataset, "processing_class": tokenizer}
    one = VOPDTrainer(student, student, recipe.training, **data)
    assert isinstance(one.teachers[None], OwnBase)
    with torch.no_grad():
        for (name, ours), theirs in zip(one.model.named_parameters(), two.model.parameters()):
            if "lora_" in name:
                ours.add_(0.05 * torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)))
                theirs.copy_(ours)
    samples = one.sample(list(one.train_dataset)[:6], step=0, generations=1)
    loss, gradients = gradients_of(one, pack(samples, 2))
    expected_loss, expected = gradients_of(two, pack(samples, 2))
    assert loss == expected_loss > 0
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(gradients[name], gradient), name
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in one.model.named_parameters())


def test_the_command_keeps_one_copy_and_says_so(write_recipe, tiny_pair, tmp_path, caplog) -> None:
    fields = {"use_peft": True, "lora_r": 4, "teacher_prompt_template": "{answer} {prompt}"}
    own = write_recipe("own", teacher_model_name_or_path=str(tiny_pair.student), **fields)
    caplog.set_level("INFO")
    train(load_recipe(own))
    assert "one copy of the weights" in caplog.text


# Processes and servers -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_two_processes_equal_one(several, others, tmp_path, layout) -> None:
    """Two prompts to a step and a process: often one of them has no row of a teacher, and both must go on together.

    Slow: the real command on two processes, beside one process of the same global batch.
    """
    path = several(
        dataset_test_split="test", max_steps=4, eval_strategy="steps", eval_steps=4, per_device_train_batch_size=1
    )
    deepspeed = {"deepspeed": str(REPOSITORY / "recipes" / "deepspeed" / "zero3.json")} if layout == "zero3" else {}
    one = launch(path, tmp_path / "one", gradient_accumulation_steps=2)
    two = launch(path, tmp_path / "two", processes=2, gradient_accumulation_steps=1, **deepspeed)
    assert two.environment["processes"] == 2
    assert_same_run(two, one, 1e-5)
    line = one.history[-2]
    assert any(name.startswith("eval_reverse_kl/") for line in two.history for name in line), line


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_one_copy_on_two_processes(write_recipe, tiny_pair, tmp_path, layout) -> None:
    """Slow: the real command on two processes, against one that keeps two copies."""
    fields = {
        "use_peft": True, "lora_r": 4, "teacher_prompt_template": "{answer} {prompt}", "max_steps": 3,
        "per_device_train_batch_size": 1, "dataset_test_split": "test", "eval_strategy": "steps", "eval_steps": 3,
    }  # fmt: skip
    copied = tmp_path / "copy"
    tiny.save(AutoModelForCausalLM.from_pretrained(tiny_pair.student), tiny.byte_tokenizer(), copied)
    deepspeed = {"deepspeed": str(REPOSITORY / "recipes" / "deepspeed" / "zero3.json")} if layout == "zero3" else {}
    reference = write_recipe("two", teacher_model_name_or_path=str(copied), **fields)
    two = launch(reference, tmp_path / "reference", gradient_accumulation_steps=4)
    own = write_recipe("one", teacher_model_name_or_path=str(tiny_pair.student), **fields)
    one = launch(own, tmp_path / "run", processes=2, gradient_accumulation_steps=2, **deepspeed)
    assert "one copy of the weights" in " ".join(one.output.split())
    assert "one copy of the weights" not in " ".join(two.output.split())
    assert_same_run(one, two, 1e-5)


@pytest.mark.slow
@needs_vllm
def test_a_local_teacher_and_a_server(several, tiny_pair, tmp_path) -> None:
    """The same loss and gradients as with both here, teachers' own prompts and all. Slow: a real server starts."""
    fields = {"baseline": "value_topk", "support": "teacher", "support_top_k": 5}
    privileged = {"teacher_prompt_template": "{answer} {prompt}", "answer_column": "answer"}
    service = VLLMServer(tiny_pair.teacher, tmp_path / "log")
    service.start()
    try:
        service.wait()
        remote = {"teacher_model_name_or_path": None, "backend": "server", "server_url": service.url}
        served = load_recipe(several(first=remote, **fields, **privileged)).by_teacher()["first"]
        local = build(several(**fields, **privileged))
        teacher = connect_to_teacher(served, local.tokenizer, 200)
        teacher.vocabulary = local.vocabulary  # with the padding, which random models give mass to
        samples = mixed_samples(local)
        expected_loss, expected = gradients_of(local, pack(samples, 2))
        local.teacher = SeveralTeachers({"first": teacher, "second": local.teachers["second"]})
        loss, gradients = gradients_of(local, pack(samples, 2))
    finally:
        service.kill()
    assert loss == pytest.approx(expected_loss, abs=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-4, rtol=1e-3)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_recipes_of_teachers_that_contradict_themselves(several, write_recipe, problem_folder, others) -> None:
    here, there = str(problem_folder), str(others)

    def says(path: Path) -> str:
        return refusal(load_recipe, path)

    line = says(several(teacher_model_name_or_path="org/model"))
    assert "teacher_model_name_or_path: names one teacher beside teachers" in line
    assert ".yaml:" in line
    assert "teachers: names none" in says(several(teachers={}))
    mixture = [{"dataset_name": here, "teacher": "frist"}, {"dataset_name": there, "teacher": "second"}]
    assert "'frist' is not in teachers; did you mean 'first'?" in says(several(dataset_mixture=mixture))
    mixture = [{"dataset_name": here, "teacher": "first"}, {"dataset_name": there}]
    assert f"{there} names no teacher, and others do" in says(several(dataset_mixture=mixture))
    mixture = [{"dataset_name": here}, {"dataset_name": there}]
    assert "nothing says whose a prompt is" in says(several(dataset_mixture=mixture))
    mixture = [{"dataset_name": here, "teacher": "first"}, {"dataset_name": there, "teacher": "first"}]
    assert "second has no entry of dataset_mixture" in says(several(dataset_mixture=mixture))
    assert "both say whose a prompt is" in says(several(teacher_column="prompt"))
    assert "there are no teachers to choose from" in says(write_recipe(teacher_column="prompt"))
    assert "teachers: first: unknown field 'modle_name_or_path'; did you mean" in says(
        several(first={"modle_name_or_path": "x"})
    )
    assert "teachers: first: teacher_dtype must be one of" in says(several(first={"dtype": "float12"}))
    assert "teachers: first: teacher_server_url: missing" in says(several(first={"backend": "server"}))
    assert "teachers: first: teacher_model_name_or_path: missing" in says(
        several(first={"teacher_model_name_or_path": None})
    )
    bad = {"teachers": {"a b": {"teacher_model_name_or_path": "x"}}}
    assert "a name is made of letters" in says(several(**bad))
    model = {"teacher_model_name_or_path": "x"}
    assert "teachers: 1 stands twice; give each" in says(several(teachers={1: model, "1": model}))
    served = {"backend": "server", "server_url": "http://127.0.0.1:1"}
    assert "teachers: first: divergence: full" in says(several(first=served, divergence="full"))
    assert "is a message of a chat" in says(write_recipe(teacher_system_prompt="x"))
    assert "no effect without teacher_prompt_template" in says(write_recipe(teacher_max_prompt_length=9))


def test_an_entry_inherits_what_its_kind_of_teacher_has(several) -> None:
    """As docs/teachers.md has it: a local teacher that visits beside a server of hidden states, either way round."""
    server = {"backend": "server", "server_url": "http://127.0.0.1:1"}
    path = several(other={**server, "server_scores": "hidden_states"}, teacher_offload=True)
    first, second = (one.training for one in load_recipe(path).by_teacher().values())
    assert (first.teacher_offload, second.teacher_offload) == (True, False)
    scores = "hidden_states"
    first, second = (
        one.training for one in load_recipe(several(other=server, teacher_server_scores=scores)).by_teacher().values()
    )
    assert (first.teacher_server_scores, second.teacher_server_scores) == ("logprobs", scores)
    both = several(
        first={**server, "server_scores": scores}, other={**server, "server_scores": scores}, teacher_offload=True
    )
    assert "teachers: first: teacher_offload has no effect" in refusal(load_recipe, both)
    assert "teacher_server_scores has no effect" in refusal(load_recipe, several(teacher_server_scores=scores))


def test_a_teacher_that_is_the_students_base_keeps_its_type(several, tiny_pair) -> None:
    """With bf16 the others are bfloat16; it is one copy with the student, in the student's."""
    path = several(first={"teacher_model_name_or_path": str(tiny_pair.student)}, use_peft=True, lora_r=2, bf16=True)
    first, second = (one.model for one in load_recipe(path).by_teacher().values())
    assert (first.teacher_is_base, first.teacher_dtype) == (True, None)
    assert (second.teacher_is_base, second.teacher_dtype) == (False, "bfloat16")
    assert is_own_base(load_student(first), first)


def test_rows_of_teachers_that_are_not_there(several, tmp_path, problem_folder, write_recipe) -> None:
    path = tmp_path / "routed.jsonl"
    rows = [{"prompt": "1=?", "answer": "1", "who": "first"}, {"prompt": "2=?", "answer": "2", "who": "thrid"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    routed = {"dataset_mixture": None, "dataset_name": str(path), "teacher_column": "who"}
    line = refusal(train, load_recipe(several(**routed)))
    assert "routed.jsonl, row 1, is 'thrid', which is not in teachers" in line
    rows[1]["who"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "row 1, is null" in refusal(train, load_recipe(several(**routed)))
    rows[1]["who"] = "first"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "teachers: second: no row's who names it" in refusal(train, load_recipe(several(**routed)))
    line = refusal(train, load_recipe(write_recipe(teacher_prompt_template="{anwser}{prompt}")))
    assert "teacher_prompt_template: {anwser} is no column" in line
    assert "did you mean 'answer'?" in line
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_teacher_whose_prompts_are_all_too_long(several, tmp_path) -> None:
    """The other one has some, so that the recipe as a whole is not empty."""
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "1+1=?\n", "who": "first"}, {"prompt": "1+1=?\n" * 20, "who": "second"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"dataset_mixture": None, "dataset_name": str(path), "teacher_column": "who", "answer_column": None}
    line = refusal(train, load_recipe(several(**fields, max_prompt_length=40)))
    assert "teachers: second: each of its prompts is over max_prompt_length" in line


def test_a_teacher_without_room_for_its_prompts(write_recipe, tiny_pair, tokenizer, tmp_path) -> None:
    """The student has room; the teacher, which reads more, has not."""
    small = tmp_path / "small"
    model = tiny.tiny_qwen3(32, 1, seed=3)
    model.config.max_position_embeddings = 48
    tiny.save(sharpened(model), tokenizer, small)
    path = write_recipe(teacher_model_name_or_path=str(small), teacher_prompt_template="{solution}{solution}{prompt}")
    line = refusal(train, load_recipe(path))
    assert "exceed the 48 positions" in line


def test_the_students_own_base_without_room_for_a_teachers_prompts(write_recipe, tokenizer, tmp_path) -> None:
    """It samples within its positions, and scores beyond them."""
    small = tmp_path / "small"
    model = tiny.tiny_qwen3(32, 1, seed=3)
    model.config.max_position_embeddings = 48
    tiny.save(sharpened(model), tokenizer, small)
    fields = {
        "model_name_or_path": str(small),
        "teacher_model_name_or_path": str(small),
        "use_peft": True,
        "lora_r": 2,
    }
    path = write_recipe(**fields, teacher_prompt_template="{solution}{solution}{prompt}")
    assert "teacher_model_name_or_path: a prompt of" in refusal(train, load_recipe(path))


@pytest.mark.parametrize("scores", ["hidden_states", "logprobs"])
def test_the_end_of_a_teacher_on_a_server(write_recipe, tiny_pair, tokenizer, tmp_path, caplog, scores) -> None:
    """What its folder or the Hub says of it; of one that nobody has named, nothing is known."""
    named = tmp_path / "named"
    shutil.copytree(tiny_pair.teacher, named)
    settings = json.loads((named / "generation_config.json").read_text())
    (named / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [256, 10]}))
    student = load_student(load_recipe(write_recipe()).model)
    for teacher, eos_token, warned in ((named, None, True), (named, "+", False), (None, None, False)):
        fields = {"teacher_model_name_or_path": teacher and str(teacher), "eos_token": eos_token}
        served = {"teacher_backend": "server", "teacher_server_url": "http://node7:8000", "baseline": "none"}
        served["teacher_server_scores"] = scores if teacher else "logprobs"
        recipe = load_recipe(write_recipe(**fields, **served))
        own = load_tokenizer(recipe.model)
        theirs = {None: teacher_tokenizer(recipe, own)}
        prompts = build_prompts(read_rows(recipe.data, 0), recipe.data, own)
        caplog.clear()
        check_all(recipe, student, {None: object()}, own, theirs, prompts, {None: read_by(prompts, None)})
        assert ("set eos_token: '+'" in caplog.text) == warned


def test_weights_of_the_same_folder_are_one(write_recipe, tiny_pair, tmp_path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_pair.student)
    fields = {"use_peft": True, "lora_r": 2}
    for teacher, extra, expected in (
        (tiny_pair.student, {}, True),
        (link, {}, True),
        (tiny_pair.teacher, {}, False),
        (tiny_pair.student, {"teacher_dtype": "bfloat16"}, False),
        (tiny_pair.student, {"use_peft": False}, False),
    ):
        recipe = load_recipe(write_recipe(teacher_model_name_or_path=str(teacher), **{**fields, **extra}))
        assert is_own_base(load_student(recipe.model), recipe.model) == expected


# Planned and explained -----------------------------------------------------------------------------------------------


def test_the_planner_counts_every_teacher(several, write_recipe, tiny_pair, second) -> None:
    """Weights of all; of those that visit, their heads and one visit at a time; of the student's own base, nothing."""

    def items(path: Path, **changed: object) -> dict[str, Item]:
        words = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
        return {item.name: item for item in plan(read_setup(path, words, 1, 10**11)).items}

    def weights(folder: Path) -> int:
        return sum(tensor.numel() * 4 for tensor in load_file(folder / "model.safetensors").values())

    together = items(several())
    assert together["teacher first: weights"].loss == weights(tiny_pair.teacher)
    assert together["teacher second: weights"].loss == weights(second)
    visiting = items(several(teacher_offload=True))
    heads = {"first": 4 * 264 * 64, "second": 4 * 272 * 48}
    for name, head in heads.items():
        assert visiting[f"teacher {name}: weights"].teacher == visiting[f"teacher {name}: weights"].loss == head
    in_turn = visiting["teachers: in turn, hidden states"].teacher
    stay = together["teachers: in turn, hidden states"].teacher
    assert in_turn - stay >= weights(tiny_pair.teacher) - heads["first"]

    own = {"teacher_model_name_or_path": str(tiny_pair.student), "use_peft": True, "lora_r": 4}
    one, two = items(write_recipe(**own)), items(write_recipe(**own, teacher_dtype="bfloat16"))
    assert not any(name.startswith("teacher: weights") for name in one)
    assert two["teacher: weights"].loss == weights(tiny_pair.student) // 2
    away = {"teacher_backend": "server", "teacher_server_url": "http://node7:8000"}
    states = items(write_recipe(**away, teacher_server_scores="hidden_states", divergence="full"))
    head = states["teacher: head"]
    assert {head.rollout, head.teacher, head.loss, head.backward, head.update} == {4 * 264 * 64}
    assert states["teacher: hidden states"].loss > 0
    assert [name for name in states if name.startswith("teacher")] == ["teacher: head", "teacher: hidden states"]
    logprobs = items(write_recipe(**away, baseline="none"))
    assert not any(name.startswith("teacher") for name in logprobs)
    longer = items(write_recipe(teacher_prompt_template="{solution}{prompt}", teacher_max_prompt_length=2048))
    plain = items(write_recipe())
    name = "teacher: forward, hidden states"
    assert longer[name].teacher > plain[name].teacher and longer[name].loss == plain[name].loss


def test_explain_says_who_teaches_what(several, write_recipe, tiny_pair, second, problem_folder) -> None:
    text = explain(several(), [], 1)
    assert f"# teachers: first: {tiny_pair.teacher} (here), of {problem_folder}\n" in text
    assert f"second: {second} (here), of " in text
    served = {"teacher_model_name_or_path": None, "backend": "server", "server_url": "http://node7:8000"}
    text = explain(several(first=served, baseline="none"), [], 1)
    assert "first: the model (at http://node7:8000), of " in text
    own = write_recipe(
        teacher_model_name_or_path=str(tiny_pair.student), use_peft=True, teacher_prompt_template="{answer}{prompt}"
    )
    text = explain(own, [], 1)
    assert "the student's own base, one copy of the weights" in text
    assert "reads a prompt of its own" in text
    assert "# teachers:" not in explain(write_recipe(), [], 1)


def test_the_banner_names_every_teacher(several, write_recipe, tiny_pair, second) -> None:
    path = several(teacher_offload=True, answer_column="answer", teacher_prompt_template="{answer}{prompt}")
    rows = beginning(load_recipe(path), build(path), 0, None)
    told = [text for label, text in rows[[label for label, _ in rows].index("teacher") :] if label in ("teacher", "")]
    assert told[:3] == [
        f"first: {tiny_pair.teacher}, in CPU memory between its turns",
        f"second: {second}, in CPU memory between its turns",
        "reads more than the student: a prompt of its own",
    ]
