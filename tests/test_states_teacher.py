"""A pooling server's hidden states give what a local teacher gives, for every estimator; what is wrong is one line.

Slow, because a vLLM server takes half a minute to start; one is started for all tests.
"""

import gc
import json
import sys
from collections.abc import Callable

import httpx
import pytest
import torch
from conftest import TinyPair
from fake_hub import WRITER
from huggingface_hub import HfApi
from launching import REPOSITORY, SCRIPT, assert_same_run, assert_same_weights, execute, launch, needs_vllm
from safetensors.torch import load_file, save_file
from teacher_service import VLLMServer
from test_trainer import build
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PhiConfig,
    Qwen3Config,
)
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)
from using_fake_hub import fake_hub_in_use

from vopd_recipes.loss import Head
from vopd_recipes.models import load_teacher_head, scale_logits
from vopd_recipes.packing import pack
from vopd_recipes.recipe import ModelConfig, RecipeError, load_recipe
from vopd_recipes.teacher import StatesServer, StatesTeacher, TeacherServer, TeacherUnavailable
from vopd_recipes.tiny import byte_tokenizer

PROMPTS = [list(range(40, 40 + length)) for length in (3, 9, 17, 1)]
COMPLETIONS = [list(range(60, 60 + length)) for length in (5, 1, 12, 30)]
METHODS = {
    "value": {},
    "optimal": {"baseline": "optimal"},
    "full": {"divergence": "full"},
    "rao_blackwell": {"divergence": "rao_blackwell", "support_top_k": 5},
    "jsd": {"divergence": "jsd", "jsd_beta": 0.3},
    "live variance": {"log_gradient_variance": True},
}


@pytest.fixture(scope="module")
def server(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory):
    service = VLLMServer(tiny_pair.teacher, tmp_path_factory.mktemp("server") / "log", pooling=True)
    service.start()
    service.wait()
    yield service
    service.kill()


def refusal(call, *args, error=RecipeError) -> str:
    with pytest.raises(error) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def head_of_teacher(pair: TinyPair) -> Head:
    return load_teacher_head(ModelConfig("student", teacher_model_name_or_path=str(pair.teacher)))


# The real server -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_states_under_the_head_are_the_models_own_distribution(server, tiny_pair, tokenizer, dtype, tolerance) -> None:
    client, head = StatesServer(server.url, None, dtype, timeout=20), head_of_teacher(tiny_pair)
    client.check(tokenizer, 200, head)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_pair.teacher).eval()
    futures = [client.submit(prompt, completion) for prompt, completion in zip(PROMPTS, COMPLETIONS)]
    for prompt, completion, future in zip(PROMPTS, COMPLETIONS, futures):
        with torch.no_grad():
            expected = teacher(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert future.result().dtype == dtype
        ours = (future.result().float() @ head.weight.t()).log_softmax(-1)
        kl = (expected.exp() * (expected - ours)).sum(-1)
        assert kl.abs().max() < tolerance
        if dtype == torch.float32:
            torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("method", METHODS)
def test_a_window_equals_the_local_teachers(server, tiny_pair, write_recipe, method: str) -> None:
    """The same loss, statistics and gradients, over several micro-batches."""
    trainer = build(write_recipe(**METHODS[method]))
    samples = trainer.sample(list(trainer.train_dataset)[:6], step=0, generations=1)
    client = StatesServer(server.url, None, torch.float32, 20)

    def trained_by(teacher):
        trainer.teacher = teacher
        trainer.model.zero_grad()
        batches = pack(samples, 3)
        tokens = torch.tensor(sum(len(batch.targets) for batch in batches))
        losses = []
        for batch, view in zip(batches, trainer.teacher.views(batches)):
            inputs = {"micro_batch": batch, "teacher_view": view}
            loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=tokens)
            loss.backward()
            losses.append(loss.item())
        return losses, [parameter.grad.clone() for parameter in trainer.model.parameters()]

    expected, expected_gradients = trained_by(trainer.teacher)
    losses, gradients = trained_by(StatesTeacher(client, head_of_teacher(tiny_pair)))
    # four bytes of each of 64 numbers for every token of prompt and completion but the last
    assert client.received == sum(len(one.prompt_ids) + len(one.completion_ids) - 1 for one in samples) * 4 * 64
    assert losses == pytest.approx(expected, abs=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@needs_vllm
def test_a_run_equals_one_with_the_local_teacher(server, write_recipe, tmp_path) -> None:
    """Log lines, held-out values and weights of three steps; vLLM sums in another order (seen: 1.1e-5 in weights)."""
    recipe = write_recipe(max_steps=3, test_size=6, eval_strategy="steps", eval_steps=3)
    local = launch(recipe, tmp_path / "local")
    remote = launch(recipe, tmp_path / "remote", **served(server))
    assert_same_run(remote, local, 1e-4)


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("method", ["value", "optimal", "full", "rao_blackwell", "jsd"])
def test_three_steps_equal_those_of_the_local_teacher(server, tiny_pair, write_recipe, tmp_path, method: str) -> None:
    """Losses, reverse KL and weights relative to the largest of each (seen: 5e-6)."""

    def trained(name: str, teacher: StatesTeacher | None) -> tuple[torch.Tensor, torch.Tensor]:
        trainer = build(write_recipe(**METHODS[method]), max_steps=3, output_dir=tmp_path / name)
        trainer.teacher = teacher or trainer.teacher
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        assert len(lines) == 3
        weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
        return torch.tensor([[line["loss"], line["reverse_kl"]] for line in lines]), weights

    expected = trained("local", None)
    client = StatesServer(server.url, None, torch.float32, 20)
    for found, wanted in zip(trained("remote", StatesTeacher(client, head_of_teacher(tiny_pair))), expected):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.slow
@needs_vllm
def test_two_processes_equal_one(server, write_recipe, tmp_path) -> None:
    """Each process asks for its own micro-batches, under ZeRO-3 too, and has the head whole; a local teacher's run."""
    recipe = write_recipe(max_steps=3, divergence="full", **served(server))
    one = launch(recipe, tmp_path / "one", gradient_accumulation_steps=4)
    local = write_recipe("local", max_steps=3, divergence="full")
    assert_same_run(one, launch(local, tmp_path / "local", gradient_accumulation_steps=4), 1e-4)
    zero3 = {"deepspeed": REPOSITORY / "recipes" / "deepspeed" / "zero3.json"}
    for kind, fields in (("MULTI_CPU", {}), ("DEEPSPEED", zero3)):
        two = launch(recipe, tmp_path / kind, processes=2, **fields)
        assert (two.environment["processes"], two.environment["distributed_type"]) == (2, kind)
        assert_same_run(two, one, 1e-5)


def served(server: VLLMServer) -> dict[str, str]:
    return {
        "teacher_backend": "server", "teacher_server_url": server.url, "teacher_server_scores": "hidden_states"
    }  # fmt: skip


@pytest.mark.slow
@needs_vllm
def test_what_does_not_fit_is_said_before_training(server, tiny_pair, tokenizer, write_recipe) -> None:
    head = head_of_teacher(tiny_pair)
    client = StatesServer(server.url, None, torch.float32, timeout=2)
    assert "takes 256 tokens" in refusal(client.check, tokenizer, 256, head)
    narrow = Head(head.weight[:, :32])
    assert "are 64 wide, the head of teacher_model_name_or_path 32" in refusal(client.check, tokenizer, 99, narrow)
    assert "uniform distribution" in refusal(client.check, tokenizer, 99, Head(head.weight * 1e-4))
    wrong_way_round = TeacherServer(server.url, None, 5, timeout=2)
    message = refusal(wrong_way_round.check, tokenizer, 99)
    assert "answered 404" in message and message.endswith("or set teacher_server_scores: hidden_states")
    recipe = write_recipe(max_steps=1, **served(server), max_completion_length=300)
    done = execute([sys.executable, str(SCRIPT), str(recipe)])
    assert done.returncode == 2 and "error: teacher_server_url: " in done.stderr


@pytest.mark.slow
@needs_vllm
def test_the_benchmark_counts_what_travels(server, write_recipe) -> None:
    """Four bytes of each of 64 numbers for every token of prompt and completion but the last."""
    recipe = write_recipe(max_completion_length=20)
    words = ["--states", server.url, "--sequences", "8", "--rounds", "1"]
    done = execute([sys.executable, "scripts/benchmark_teacher.py", str(recipe), *words])
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| hidden states in float32")]
    assert 4 * 64 <= int(row.split("|")[2].replace(",", "")) <= 4 * 64 * 4
    assert "× local" in done.stdout


# Recorded answers ----------------------------------------------------------------------------------------------------


def pooling(states: Callable[[list[int]], object]) -> Callable:
    """A server of the byte tokenizer whose /pooling answers with what `states` makes of the token ids."""
    tokenizer = byte_tokenizer()

    def reply(path: str, body: dict, number: int):
        if path == "/v1/models":
            return 200, {}, {"data": [{"id": "teacher", "max_model_len": 4096}]}
        if path == "/tokenize":
            return 200, {}, {"tokens": tokenizer.encode(body["prompt"], add_special_tokens=False)}
        if path == "/detokenize":
            return 200, {}, {"prompt": tokenizer.decode(body["tokens"])}
        found = states(body["input"])
        return found if isinstance(found, tuple) else (200, {}, found)

    return reply


def as_bytes(rows: torch.Tensor) -> bytes:
    return rows.contiguous().view(torch.uint8).numpy().tobytes()


def rows_of(ids: list[int], width: int = 8) -> torch.Tensor:
    """[T, width] states that tell tokens and positions apart."""
    return torch.tensor([[token + 0.01 * place] * width for place, token in enumerate(ids)])


def test_only_what_predicts_the_completion_is_kept(recorded) -> None:
    service = recorded(pooling(lambda ids: as_bytes(rows_of(ids))))
    states = StatesServer(service.url, "t", torch.float32, 5).submit([3, 4, 5], [7, 8]).result()
    ((path, body),) = service.requests
    assert path == "/pooling" and body["input"] == [3, 4, 5, 7]
    assert body["use_activation"] is False and body["encoding_format"] == "bytes_only"
    torch.testing.assert_close(states, rows_of([3, 4, 5, 7])[2:])
    assert states.untyped_storage().nbytes() == states.nbytes, "the prompt's rows are not kept beside them"


@pytest.mark.parametrize(
    "answer, expected",
    [
        (lambda ids: as_bytes(rows_of(ids))[:-2], "bytes for 3 tokens of torch.float32"),
        (lambda ids: b"", "0 bytes for 3 tokens"),
        (lambda ids: as_bytes(rows_of(ids).mul_(float("nan"))), "states that are not finite"),
        (lambda ids: (400, {}, {"error": {"message": "too\nlong"}}), "/pooling answered 400: too long"),
        (lambda ids: (503, {}, {"error": {"message": "loading"}}), "no answer from http"),
    ],
)
def test_an_answer_that_is_none_is_one_line(recorded, answer, expected: str) -> None:
    service = recorded(pooling(answer))
    future = StatesServer(service.url, "t", torch.float32, 0.5).submit([3, 4], [7, 8])
    assert expected in refusal(future.result, error=TeacherUnavailable)


def test_rows_that_are_missing_are_no_narrower_states(recorded) -> None:
    """Seven rows of eight tokens are as many bytes as eight rows of states that are 56 wide."""
    service = recorded(pooling(lambda ids: as_bytes(rows_of(ids, 64)[1:])))
    client = StatesServer(service.url, "t", torch.float32, 5)
    StatesTeacher(client, Head(torch.randn(264, 64)))
    future = client.submit([3, 4, 5], [6, 7, 8, 9, 10, 11])
    assert "1,792 bytes for 8 tokens of torch.float32" in refusal(future.result, error=TeacherUnavailable)


def test_states_of_another_type_are_refused(recorded, tokenizer) -> None:
    service = recorded(pooling(lambda ids: as_bytes(rows_of(ids))))
    client = StatesServer(service.url, "teacher", torch.bfloat16, 5)
    message = refusal(client.check, tokenizer, 99, Head(torch.randn(264, 8)))
    assert "are 16 wide, the head of teacher_model_name_or_path 8; both must be of one model, and the" in message
    assert message.endswith("send torch.bfloat16, as it is asked to (embed_dtype)")


@pytest.mark.slow
def test_a_run_that_a_server_breaks_off_resumes(recorded, tiny_pair, write_recipe, tmp_path) -> None:
    """Slow: three runs. The last micro-batch of the third step is refused; the end is as if nothing had happened."""
    model, asked, healthy = AutoModelForCausalLM.from_pretrained(tiny_pair.teacher).eval(), [], []

    @torch.no_grad()
    def states(ids: list[int]) -> object:
        asked.append(ids)
        if len(asked) == 1 + 3 * 4 and not healthy:  # one is the check's
            return 400, {}, {"error": {"message": "no"}}
        return as_bytes(model.base_model(torch.tensor([ids])).last_hidden_state[0])

    fields = {"teacher_backend": "server", "teacher_server_scores": "hidden_states", "max_steps": 4, "save_steps": 2}
    fields["teacher_server_url"] = recorded(pooling(states)).url
    recipe = write_recipe(**fields, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    done = execute([sys.executable, str(SCRIPT), str(recipe)])
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and line.startswith("error: step 3: the teacher failed: ")
    assert line.endswith(f"the same command resumes from {tmp_path / 'run' / 'checkpoint-2'}")
    healthy.append(True)
    resumed = launch(recipe, tmp_path / "run")
    assert_same_weights(resumed.weights, launch(recipe, tmp_path / "undisturbed").weights, 0)


def test_an_answer_is_kept_once(recorded) -> None:
    """And not by its response as well, for as long as Python does not look for circles."""
    service = recorded(pooling(lambda ids: as_bytes(rows_of(ids, 1024))))
    client = StatesServer(service.url, "t", torch.float32, 5)
    gc.collect()
    gc.disable()
    try:
        states = [client.submit([3, 4, 5], [7, 8]).result() for _ in range(8)]
        responses = [one for one in gc.get_objects() if isinstance(one, httpx.Response)]
        ours = [one for one in responses if one._request and str(one.url).startswith(service.url)]
        assert sum(len(getattr(one, "_content", b"")) for one in ours) == 0
    finally:
        gc.enable()
    assert client.received == 8 * 4 * 1024 * 4 and len(states) == 8


@pytest.mark.parametrize("change", ["the same", "another"])
def test_a_server_started_again_between_windows(recorded, tokenizer, write_recipe, change: str) -> None:
    """With the same model it is asked for the next window; with another it is one line."""
    rooms = [4096]

    def reply(path: str, body: dict, number: int):
        if path == "/v1/models":
            return 200, {}, {"data": [{"id": "teacher", "max_model_len": rooms[0]}]}
        return pooling(lambda ids: as_bytes(torch.randn(len(ids), 8)))(path, body, number)

    head = Head(torch.randn(264, 8))
    client = StatesServer(recorded(reply).url, None, torch.float32, 5)
    client.check(tokenizer, 99, head)
    trainer = build(write_recipe())
    batches = pack(trainer.sample(list(trainer.train_dataset)[:2], step=0, generations=1), 3)
    rooms[0] = 4096 if change == "the same" else 2048
    teacher = StatesTeacher(client, head)
    if change == "the same":
        assert [view() for view in teacher.views(batches)]
    else:
        message = refusal(teacher.views, batches, error=TeacherUnavailable)
        assert "holds another model than before: max_model_len 2048 instead of 4096" in message


def test_normalised_states_are_refused(recorded, tokenizer) -> None:
    service = recorded(pooling(lambda ids: as_bytes(torch.nn.functional.normalize(rows_of(ids)))))
    client = StatesServer(service.url, "teacher", torch.float32, 5)
    assert "of length 1: it normalises them" in refusal(client.check, tokenizer, 99, Head(torch.randn(264, 8)))


def test_a_generation_server_is_refused(recorded, tokenizer) -> None:
    service = recorded(pooling(lambda ids: (404, {}, {"detail": "Not Found"})))
    client = StatesServer(service.url, "teacher", torch.float32, 5)
    message = refusal(client.check, tokenizer, 99, Head(torch.randn(264, 8)))
    assert "/pooling answered 404" in message and "--runner pooling --convert embed" in message


def test_no_more_is_asked_for_than_there_is_room(recorded, write_recipe) -> None:
    """Micro-batches are asked for one after the other as room allows, one that is larger than all of it alone."""
    trainer = build(write_recipe())
    samples = trainer.sample(list(trainer.train_dataset)[:6], step=0, generations=1)
    batches = pack(samples, 3)
    need = [sum(len(s.prompt_ids) + len(s.completion_ids) for s in batch.samples) * 8 * 4 for batch in batches]
    service = recorded(pooling(lambda ids: as_bytes(rows_of(ids))))
    for budget, first in ((10**9, 3), (need[0] + need[1], 2), (1, 1)):
        service.requests.clear()
        client = StatesServer(service.url, "teacher", torch.float32, 5)
        views = StatesTeacher(client, Head(torch.randn(264, 8)), budget).views(batches)
        asked = []
        for view in views:
            client._pool.submit(int).result()
            asked.append(len({id(future) for _, futures in view.args[1]._asked for future in futures}))
            view()
        counts = [len(batch.samples) for batch in batches]
        assert asked[0] == sum(counts[:first])
        assert len([path for path, _ in service.requests if path == "/pooling"]) == len(samples)


def test_no_server_of_states_without_the_teachers_name(write_recipe) -> None:
    fields = {"teacher_backend": "server", "teacher_server_url": "http://127.0.0.1:9"}
    recipe = write_recipe(teacher_model_name_or_path=None, teacher_server_scores="hidden_states", **fields)
    assert "teacher_model_name_or_path: missing" in refusal(load_recipe, recipe)
    assert "no effect" in refusal(load_recipe, write_recipe(teacher_server_scores="hidden_states"))


# The head alone ------------------------------------------------------------------------------------------------------


def test_the_head_is_the_models(tiny_pair: TinyPair) -> None:
    for folder, tied in ((tiny_pair.teacher, False), (tiny_pair.student, True)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        head = load_teacher_head(ModelConfig("s", teacher_model_name_or_path=str(folder), teacher_dtype="bfloat16"))
        assert ("lm_head.weight" in load_file(folder / "model.safetensors")) != tied
        torch.testing.assert_close(head.weight, model.lm_head.weight.detach().bfloat16(), atol=0, rtol=0)
        assert head.bias is None and not head.weight.requires_grad


def test_the_head_is_whole_where_models_are_sharded_while_they_are_made(tiny_pair: TinyPair) -> None:
    """ZeRO-3, as the trainer's arguments announce it."""
    zero3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        head = head_of_teacher(tiny_pair)
        assert is_deepspeed_zero3_enabled()
    finally:
        unset_hf_deepspeed_config()
        del zero3
    weights = load_file(tiny_pair.teacher / "model.safetensors")
    torch.testing.assert_close(head.weight, weights["lm_head.weight"], atol=0, rtol=0)


def test_the_index_says_which_file_is_read(tiny_pair: TinyPair, tmp_path) -> None:
    """Of several files one is opened: the others need not be there."""
    model = AutoModelForCausalLM.from_pretrained(tiny_pair.teacher)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) > 3
    for other in set(files.values()) - {files["lm_head.weight"]}:
        (tmp_path / other).unlink()
    head = load_teacher_head(ModelConfig("s", teacher_model_name_or_path=str(tmp_path)))
    torch.testing.assert_close(head.weight, model.lm_head.weight.detach(), atol=0, rtol=0)


SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {
    "soft cap": Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=7.0),
    "scale": CohereConfig(**SMALL, logit_scale=0.25),
    "divisor": GraniteConfig(**SMALL, logits_scaling=4.0),
    "bias": PhiConfig(**SMALL),
    "tied": Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
    "own": Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=False),
}


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_heads_with_what_belongs_to_them(kind: str, shards: bool, tmp_path, monkeypatch) -> None:
    """From a folder and from the Hub, whose one tensor is all that comes of the weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(HEADS[kind]).eval()
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "model", **({"max_shard_size": "20KB"} if shards else {}))
    ids = torch.arange(5)[None]
    with torch.no_grad():
        states, expected = model.base_model(input_ids=ids).last_hidden_state, model(input_ids=ids).logits

    def check(name: str) -> Head:
        head = load_teacher_head(ModelConfig("s", teacher_model_name_or_path=name))
        logits = scale_logits(torch.nn.functional.linear(states, head.weight, head.bias), head)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        return head

    check(str(tmp_path / "model"))
    with fake_hub_in_use(monkeypatch, tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=WRITER)
        api.create_repo("org/m")
        api.upload_folder(repo_id="org/m", folder_path=tmp_path / "model")
        hub.requests.clear()
        check("org/m")
        read = {request for request in hub.requests if request.startswith("GET") and ".safetensors" in request}
        assert len({request for request in read if not request.endswith(".json")}) <= 1 + (kind == "bias")
    assert not [*tmp_path.glob("cache/**/*.safetensors"), *tmp_path.glob("hf/**/*.safetensors")]


def test_a_checkpoint_without_its_head_is_refused(tiny_pair: TinyPair, tmp_path) -> None:
    weights = load_file(tiny_pair.teacher / "model.safetensors")
    weights.pop("lm_head.weight")
    (tmp_path / "config.json").write_bytes((tiny_pair.teacher / "config.json").read_bytes())
    config = ModelConfig("s", teacher_model_name_or_path=str(tmp_path))
    assert "cannot read the head of" in refusal(load_teacher_head, config)
    save_file(weights, tmp_path / "model.safetensors")
    assert "holds no lm_head.weight" in refusal(load_teacher_head, config)
    weights["lm_head.weight"] = torch.zeros(3, 64)
    save_file(weights, tmp_path / "model.safetensors")
    assert "is (3, 64), its configuration says (264, 64)" in refusal(load_teacher_head, config)
