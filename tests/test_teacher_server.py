"""A real vLLM server scores as the model does; one that fails, restarts or is another costs a wait or one clear line.

Slow, because a server takes half a minute to start; one is started for all tests, and once more after it was killed.
"""

import base64
import io
import sys
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from conftest import TinyPair
from launching import REPOSITORY, SCRIPT, Run, assert_same_run, assert_same_weights, execute, launch, needs_vllm
from teacher_service import VLLMServer
from test_trainer import build
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from vopd_recipes.loss import Estimator, Head, Scores
from vopd_recipes.packing import Sample, pack
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.teacher import ServerTeacher, TeacherServer, TeacherUnavailable
from vopd_recipes.teacher.logprobs import ServerView
from vopd_recipes.teacher.server import read_scores
from vopd_recipes.tiny import pair as tiny
from vopd_recipes.training import TrainingStopped

K = 20
PROMPTS = [list(range(40, 40 + length)) for length in (3, 9, 17, 1)]
COMPLETIONS = [list(range(60, 60 + length)) for length in (5, 1, 12, 30)]


@pytest.fixture(scope="module")
def server(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory):
    service = VLLMServer(tiny_pair.teacher, tmp_path_factory.mktemp("server") / "log")
    service.start()
    service.wait()
    yield service
    service.kill()


def refusal(call, *args, error=RecipeError, **kwargs) -> str:
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@needs_vllm
def test_scores_are_the_models_own(server: VLLMServer, tiny_pair: TinyPair, tokenizer) -> None:
    client = TeacherServer(server.url, support_top_k=K, timeout=20)
    client.check(tokenizer, longest=255)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_pair.teacher).eval()
    futures = [client.submit(prompt, completion) for prompt, completion in zip(PROMPTS, COMPLETIONS)]
    for prompt, completion, future in zip(PROMPTS, COMPLETIONS, futures):
        scores = future.result()
        with torch.no_grad():
            logp = teacher(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logp.gather(1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(scores.logprobs, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(scores.support_logprobs, logp.topk(K).values, atol=1e-4, rtol=0)
        assert torch.equal(scores.support_ids, logp.topk(K).indices)


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("baseline", ["none", "constant", "value_topk"])
def test_a_window_equals_the_local_teachers(server: VLLMServer, write_recipe, baseline: str) -> None:
    """The same loss and gradients from the server's scores as from hidden states, over several micro-batches."""
    options = {"baseline": baseline, "support": "teacher", "support_top_k": K}
    trainer = build(write_recipe(**options))
    samples = trainer.sample(list(trainer.train_dataset)[:6], step=0, generations=1)
    remote = ServerTeacher(TeacherServer(server.url, None, K, 20), trainer.vocabulary, trainer.estimator)

    def loss_and_gradients(teacher):
        trainer.teacher = teacher
        batches = pack(samples, 3)
        trainer.model.zero_grad()
        tokens = torch.tensor(sum(len(batch.targets) for batch in batches))
        total = 0.0
        for batch, view in zip(batches, trainer.teacher.views(batches)):
            inputs = {"micro_batch": batch, "teacher_view": view}
            loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=tokens)
            loss.backward()
            total += loss.item()
        return total, [parameter.grad.clone() for parameter in trainer.model.parameters()]

    expected, expected_gradients = loss_and_gradients(trainer.teacher)
    loss, gradients = loss_and_gradients(remote)
    assert loss == pytest.approx(expected, abs=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@needs_vllm
def test_the_script_trains_from_a_server_that_is_started_again(server: VLLMServer, write_recipe, tmp_path) -> None:
    """No teacher is named or loaded; the server is killed in the middle of the run and comes back."""
    fields = {
        "teacher_model_name_or_path": None, "teacher_backend": "server", "teacher_server_url": server.url,
        "baseline": "value_topk", "support": "teacher", "max_steps": 60, "save_steps": 30,
    }  # fmt: skip
    runs: list[Run] = []
    recipe = write_recipe(**fields)
    thread = threading.Thread(target=lambda: runs.append(launch(recipe, tmp_path / "run")))
    thread.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "completions" / "step-00000003.parquet").exists():
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    server.kill()
    server.start()
    thread.join(timeout=200)
    server.wait()
    (run,) = runs
    lines = [line for line in run.history if "loss" in line]
    assert len(lines) == 60
    assert max(line["time/teacher"] for line in lines) > 2  # the wait
    assert all(line["reward/mean"] == pytest.approx(-line["reverse_kl"], abs=1e-6) for line in lines)


@pytest.mark.slow
@needs_vllm
def test_two_processes_equal_one(server: VLLMServer, write_recipe, tmp_path) -> None:
    """Each process asks for its own completions; losses, gradients and weights are those of the whole batch."""
    recipe = write_recipe(
        teacher_model_name_or_path=None, teacher_backend="server", teacher_server_url=server.url,
        baseline="value_topk", support="teacher", max_steps=3,
    )  # fmt: skip
    one = launch(recipe, tmp_path / "one", gradient_accumulation_steps=4)
    zero3 = {"deepspeed": REPOSITORY / "recipes" / "deepspeed" / "zero3.json"}
    for kind, fields in (("MULTI_CPU", {}), ("DEEPSPEED", zero3)):
        two = launch(recipe, tmp_path / kind, processes=2, **fields)
        assert (two.environment["processes"], two.environment["distributed_type"]) == (2, kind)
        assert_same_run(two, one, 1e-5)


@pytest.mark.slow
def test_a_failure_inside_a_step_stops_every_process(write_recipe, recorded, tmp_path) -> None:
    """One process's last micro-batch is never scored: the others, in their backward, do not wait for ddp_timeout.

    The same command resumes from the last checkpoint, and ends with the weights of a run that nothing happened to.
    """
    answers, scored, healthy = _recorded_teacher(fail_after=10**6), [], threading.Event()

    def reply(path: str, body: dict, number: int):
        if "prompt_logprobs" in body:
            scored.append(number)
            if len(scored) == 2 + 16 + 8 + 16 and not healthy.is_set():  # two checks, and the third step's last one
                time.sleep(1)
                return 400, {}, {"error": {"message": "no"}}
        return answers(path, body, number)

    recipe = write_recipe(
        teacher_model_name_or_path=None, teacher_backend="server", teacher_server_url=recorded(reply).url,
        baseline="none", max_steps=4, save_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=8,
    )  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = execute([sys.executable, *torchrun, str(SCRIPT), str(recipe)], timeout=120)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error: step" in line]
    assert "error: step 3: the teacher failed: " in line
    assert line.endswith(f"the same command resumes from {tmp_path / 'run' / 'checkpoint-2'}")
    healthy.set()
    resumed = launch(recipe, tmp_path / "run", processes=2)
    undisturbed = launch(recipe, tmp_path / "undisturbed", processes=2)
    assert_same_weights(resumed.weights, undisturbed.weights, 0)


@pytest.mark.slow
@needs_vllm
def test_what_does_not_fit_is_said_before_training(server: VLLMServer, tokenizer) -> None:
    def check(k=5, longest=100, student_support=False, model=None, url=server.url):
        TeacherServer(url, model, k, timeout=1).check(tokenizer, longest, student_support)

    assert refusal(check, longest=256).endswith("takes 256 tokens, the longest prompt and completion have 256; start "
                                                "it with --max-model-len 257")  # fmt: skip
    assert refusal(check, k=21).endswith("start it with --max-logprobs 21 or more")
    assert "has no other; it has teacher" in refusal(check, model="other")
    assert "needs a GPU server started with --enable-scale-out" in refusal(check, student_support=True)
    other = tiny.byte_tokenizer()
    other.add_tokens(["quick"])
    message = refusal(TeacherServer(server.url, None, 5, 1).check, other, 100)
    assert "differs from the student's: 'The quick brown fox" in message


@pytest.mark.slow
@needs_vllm
def test_a_server_that_stays_away_stops_the_run_with_a_checkpoint(tiny_pair, write_recipe, recorded, tmp_path) -> None:
    """Recorded answers for the first two steps, then nothing but 503."""
    answers = _recorded_teacher(fail_after=8)
    service = recorded(answers)
    recipe = write_recipe(
        teacher_model_name_or_path=None, teacher_backend="server", teacher_server_url=service.url,
        baseline="none", max_steps=4, teacher_server_timeout=1.5,
    )  # fmt: skip
    done = execute([sys.executable, str(SCRIPT), str(recipe)])
    assert done.returncode == 1, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: step 3: the teacher failed: no answer from http://127.0.0.1:")
    assert line.endswith(f"the same command resumes from {tmp_path / 'run' / 'checkpoint-2'}")


def _recorded_teacher(fail_after: int):
    """A server of the byte tokenizer that gives every token -2 nats, for so many scored completions."""
    tokenizer = tiny.byte_tokenizer()
    scored = []

    def reply(path: str, body: dict, number: int):
        if path == "/v1/models":
            return 200, {}, {"data": [{"id": "teacher", "max_model_len": 4096}]}
        if path == "/tokenize":
            return 200, {}, {"tokens": tokenizer.encode(body["prompt"], add_special_tokens=False)}
        if path == "/detokenize":
            return 200, {}, {"prompt": tokenizer.decode(body["tokens"])}
        scored.append(number)
        if len(scored) > fail_after + 1:  # one is the check's
            return 503, {}, {"error": {"message": "starting"}}
        positions = [None, *({str(token): {"logprob": -2.0, "rank": 1}} for token in body["prompt"][1:])]
        return 200, {}, {"choices": [{"prompt_logprobs": positions}]}

    return reply


def position(*entries: tuple[int, float]) -> dict[str, dict[str, float]]:
    return {str(index): {"logprob": logprob, "rank": rank} for rank, (index, logprob) in enumerate(entries, 1)}


def completion_answer(*positions) -> dict:
    return {"choices": [{"prompt_logprobs": [None, *positions]}]}


GOOD = completion_answer(position((7, -0.5)))


def test_failures_that_pass_are_tried_again(recorded) -> None:
    script = [(503, {}, {"error": {"message": "loading"}}), (429, {"Retry-After": "0.3"}, {}), (500, {}, "<html>"),
              (0, {}, None), (200, {}, '{"choices": [{"prompt_'), (200, {}, GOOD)]  # fmt: skip
    service = recorded(lambda path, body, number: script[number - 1])
    start = time.monotonic()
    scores = TeacherServer(service.url, "t", 0, timeout=30).submit([3], [7]).result()
    assert scores.logprobs.tolist() == [-0.5] and scores.support_ids.shape == (1, 0)
    assert len(service.requests) == len(script)
    assert 0.3 < time.monotonic() - start < 20
    assert service.requests[0][1] == {
        "model": "t", "prompt": [3, 7], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0
    }  # fmt: skip


def test_an_answer_that_a_proxy_has_damaged_is_asked_for_again(recorded) -> None:
    service = recorded(lambda path, body, number: (200, {"Content-Encoding": "gzip"} if number == 1 else {}, GOOD))
    scores = TeacherServer(service.url, "t", 0, timeout=30).submit([3], [7]).result()
    assert scores.logprobs.tolist() == [-0.5] and len(service.requests) == 2


def test_failures_that_stay_are_not(recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    service = recorded(lambda path, body, number: (400, {}, {"error": {"message": "no such\nmodel"}}))
    message = refusal(TeacherServer(service.url, "t", 0, 30).submit([3], [7]).result, error=TeacherUnavailable)
    assert message == f"{service.url}/v1/completions answered 400: no such model"
    assert len(service.requests) == 1


def test_giving_up_names_the_server_without_its_password(monkeypatch: pytest.MonkeyPatch, recorded) -> None:
    monkeypatch.setenv("VOPD_TEACHER_API_KEY", "hunter2")
    service = recorded(lambda path, body, number: (503, {}, {"error": {"message": "loading"}}))
    url = service.url.replace("http://", "http://user:hunter3@")
    message = refusal(TeacherServer(url, "t", 0, timeout=2).submit([3], [7]).result, error=TeacherUnavailable)
    assert message.startswith(f"no answer from {service.url}/v1/completions for ") and "503: loading" in message
    assert "hunter" not in message


def test_ids_that_the_student_chose(recorded) -> None:
    """The form that vLLM 0.32 documents: rows of ids from `prompt_logprob_start` on, answered as a base64 .npy."""

    def reply(path: str, body: dict, number: int):
        rows = body["sampling_params"]["prompt_logprob_token_ids"]
        array = np.array([[-0.01 * index for index in row] for row in rows], dtype=np.float32)
        with io.BytesIO() as buffer:
            np.save(buffer, array, allow_pickle=False)
            return 200, {}, {"prompt_token_id_logprobs": base64.b64encode(buffer.getvalue()).decode()}

    service = recorded(reply)
    support = torch.tensor([[4, 5], [6, 9]])
    scores = TeacherServer(service.url, "t", 2, 5).submit([1, 2, 3], [7, 8], support).result()
    ((path, body),) = service.requests
    assert path == "/inference/v1/generate"
    assert body["token_ids"] == [1, 2, 3, 7, 8]
    assert body["sampling_params"]["prompt_logprob_start"] == 2
    assert body["sampling_params"]["prompt_logprob_token_ids"] == [[7, 4, 5], [8, 6, 9]]
    torch.testing.assert_close(scores.logprobs, torch.tensor([-0.07, -0.08]))
    torch.testing.assert_close(scores.support_logprobs, torch.tensor([[-0.04, -0.05], [-0.06, -0.09]]))
    assert torch.equal(scores.support_ids, support)


def test_a_pickle_in_the_answer_is_not_loaded(recorded) -> None:
    with io.BytesIO() as buffer:
        np.save(buffer, np.array([object()]), allow_pickle=True)
        encoded = base64.b64encode(buffer.getvalue()).decode()
    service = recorded(lambda path, body, number: (200, {}, {"prompt_token_id_logprobs": encoded}))
    future = TeacherServer(service.url, "t", 1, 5).submit([1], [7], torch.tensor([[4]]))
    assert "allow_pickle=False" in refusal(future.result, error=TeacherUnavailable)


def test_a_micro_batch_asks_for_the_students_top_k(write_recipe, tiny_pair, recorded) -> None:
    """`support: student`, from recorded answers with the real teacher's numbers: the local loss."""
    trainer = build(write_recipe(baseline="value_topk", support_top_k=6))
    teacher = trainer.teacher.model

    def reply(path: str, body: dict, number: int):
        with torch.no_grad():
            logp = teacher(torch.tensor([body["token_ids"]])).logits[0].log_softmax(-1)
        first = body["sampling_params"]["prompt_logprob_start"]
        ids = torch.tensor(body["sampling_params"]["prompt_logprob_token_ids"])
        with io.BytesIO() as buffer:
            np.save(buffer, logp[first:-1].gather(1, ids).numpy(), allow_pickle=False)
            return 200, {}, {"prompt_token_id_logprobs": base64.b64encode(buffer.getvalue()).decode()}

    samples = trainer.sample(list(trainer.train_dataset)[:4], step=0, generations=1)
    (batch,) = pack(samples, 1)
    remote = ServerTeacher(TeacherServer(recorded(reply).url, "t", 6, 20), trainer.vocabulary, trainer.estimator)
    losses = []
    for source in (trainer.teacher, remote):
        (view,) = source.views([batch])
        inputs = {"micro_batch": batch, "teacher_view": view}
        losses.append(trainer.compute_loss(trainer.model, inputs, num_items_in_batch=len(batch.targets)).item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_answers_that_make_no_sense() -> None:
    for positions, message in (
        ([position((3, -0.1))], "gives no log-probability for token 7"),
        ([position((7, -9999.0))], "gives token 7 probability 0"),
        ([position((7, -float("inf")))], "gives token 7 probability 0"),
    ):
        assert message in refusal(read_scores, positions, [7], 0, error=TeacherUnavailable)


def test_tokens_beyond_the_students_vocabulary_leave_the_support() -> None:
    estimator = Estimator(baseline="value_topk", support="teacher", support_top_k=3)
    teacher = ServerTeacher(TeacherServer("http://127.0.0.1:1", "t", 3, 1), 100, estimator)

    class Ready:
        def result(self):
            return read_scores([position((7, -0.5), (200, -1.0), (3, -2.0))], [7], 3)

    scores = teacher.joined([Ready()])
    assert scores.support_ids.tolist() == [[7, -1, 3]]


def test_fields_that_need_the_whole_distribution(write_recipe, tokenizer: PreTrainedTokenizerFast) -> None:
    fields = {"teacher_backend": "server", "teacher_server_url": "http://127.0.0.1:1"}
    for more in ({}, {"baseline": "optimal"}, {"divergence": "full"}, {"divergence": "topk"}):
        assert "need the teacher's whole distribution" in refusal(load_recipe, write_recipe(**fields, **more))
    variance = {"baseline": "none", "log_gradient_variance": True}
    assert "log_gradient_variance: true needs" in refusal(load_recipe, write_recipe(**fields, **variance))
    assert "teacher_server_url: missing" in refusal(load_recipe, write_recipe(teacher_backend="server"))


def test_a_token_that_only_the_tokenizer_knows_leaves_the_support() -> None:
    """A tokenizer may name more tokens than the student has, and the teacher may hold one of them likely."""
    estimator = Estimator("rao_blackwell", "tail", "teacher", 2)
    teacher = ServerTeacher(TeacherServer("http://nowhere", "t", 2, 2), 12, estimator)
    (batch,) = pack([Sample(0, [3], [7, 1], [-2.0, -2.0], True)], 1)
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(2, 4, generator=generator), Head(torch.randn(10, 4, generator=generator))

    def loss(ids: list[list[int]]) -> torch.Tensor:
        answer: Future[Scores] = Future()
        answer.set_result(Scores(torch.tensor([-1.0, -2.0]), torch.tensor(ids), torch.tensor([[-0.5, -3.0]] * 2)))
        view = ServerView(teacher, [answer])
        return view.student_loss(hidden, head, batch, estimator, torch.ones(2), variance=False)[0]

    assert torch.equal(loss([[2, 11], [4, 5]]), loss([[2, -1], [4, 5]]))


def loading(recorded, hangs: bool):
    """A server that says 503, at once or once the event is set."""
    never = threading.Event()

    def reply(path: str, body: dict, number: int):
        if hangs:
            never.wait(60)
        return 503, {}, {"error": {"message": "loading"}}

    return never, recorded(reply)


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True])
def test_a_process_that_gave_up_ends(recorded, hangs: bool) -> None:
    """1024 requests wait, 64 of them under way, when the first is given up: none is tried for as long again (32 s)."""
    never, service = loading(recorded, hangs)
    program = f"""
import time
from vopd_recipes.teacher import TeacherServer, TeacherUnavailable
start = time.time()
futures = [TeacherServer.submit(server, [3], [7]) for server in [TeacherServer({service.url!r}, "t", 0, 2)] * 1024]
for future in futures:
    try:
        future.result()
    except TeacherUnavailable as error:
        assert str(error).startswith("no answer from {service.url}/v1/completions for "), error
print(start, time.time())
"""
    done = execute([sys.executable, "-c", program], timeout=60)
    ended = time.time()
    never.set()
    assert done.returncode == 0, done.stderr
    start, gave_up = map(float, done.stdout.split())
    assert gave_up - start < 10
    assert ended - gave_up < 10


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True])
def test_an_interrupt_ends_requests_to_a_server_that_is_away(recorded, hangs: bool) -> None:
    """An interpreter ends only after all that it has asked for, and they would go on asking for a minute."""
    never, service = loading(recorded, hangs)
    program = f"""
import signal, threading, time
from vopd_recipes.teacher import TeacherServer
from vopd_recipes.training.command import _leave
server = TeacherServer({service.url!r}, "t", 0, 60)
futures = [server.submit([3], [7]) for _ in range(200)]
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
threading.Timer(1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
try:
    futures[0].result()
except KeyboardInterrupt:
    print(time.time(), flush=True)
    _leave(0, None)
"""
    done = execute([sys.executable, "-c", program], timeout=120)
    never.set()
    assert done.returncode == 130 and time.time() - float(done.stdout) < 20, done.stderr
    assert done.stderr.count("does not answer (503: loading); trying again for 60 s") == (not hangs)


def test_answers_of_another_kind_of_server_are_one_line(recorded, tokenizer) -> None:
    odd = [
        *({}, [], {"choices": 3}, {"choices": []}, {"choices": [{"text": "hi"}]}),
        {"choices": [{"prompt_logprobs": None}]},
        completion_answer({"7": None}),
        completion_answer({"seven": {"logprob": -1.0}}),
    ]
    service = recorded(lambda path, body, number: (200, {}, odd[number - 1]))
    for _ in odd:
        submit = TeacherServer(service.url, "t", 0, 5).submit
        message = refusal(submit([3], [7]).result, error=TeacherUnavailable)
        assert message.startswith(f"{service.url}/v1/completions gave an answer that vLLM would not: ")
    for answer in ({}, [], {"data": [{}]}, {"data": None}):
        service = recorded(lambda path, body, number, answer=answer: (200, {}, answer))
        message = refusal(TeacherServer(service.url, None, 0, 5).check, tokenizer, 100)
        assert f"{service.url}/v1/models gave an answer that vLLM would not: " in message


def test_a_micro_batch_waits_for_its_own_scores_only(recorded, write_recipe) -> None:
    """The second one's are on their way while the first is trained on; where they never come, its loss says so."""
    trainer = build(write_recipe(baseline="none"))
    samples = trainer.sample(list(trainer.train_dataset)[:4], step=0, generations=1)
    batches = pack(samples, 2)
    late = {tuple(sample.prompt_ids + sample.completion_ids) for sample in batches[1].samples}
    answers, released = _recorded_teacher(fail_after=10**6), threading.Event()
    status = 200

    def reply(path: str, body: dict, number: int):
        if tuple(body["prompt"]) in late:
            assert released.wait(60)
            return (status, {}, {}) if status != 200 else answers(path, body, number)
        return answers(path, body, number)

    def loss(batch, view):
        inputs = {"micro_batch": batch, "teacher_view": view}
        return trainer.compute_loss(trainer.model, inputs, num_items_in_batch=len(batch.targets)).item()

    for status in (200, 400):
        released.clear()
        trainer.teacher = ServerTeacher(
            TeacherServer(recorded(reply).url, "t", 0, 30), trainer.vocabulary, trainer.estimator
        )
        views = trainer.teacher.views(batches)
        assert torch.isfinite(torch.tensor(loss(batches[0], views[0]))) and not released.is_set()
        threading.Timer(0.5, released.set).start()
        start = time.monotonic()
        view = views[1]()  # which the trainer counts as the teacher's time
        assert time.monotonic() - start > 0.4
        if status == 200:
            assert torch.isfinite(torch.tensor(loss(batches[1], lambda view=view: view)))
        else:
            message = refusal(loss, batches[1], lambda view=view: view, error=TrainingStopped)
            assert message.startswith("step 1: the teacher failed: ") and "answered 400" in message


@pytest.mark.parametrize("change", ["root", "max_model_len", "tokenizer"])
def test_another_model_behind_the_url_is_noticed(recorded, change: str) -> None:
    """Under the old name, after an outage and without one: its scores are never used."""
    tokenizer = tiny.byte_tokenizer()
    other = tiny.byte_tokenizer()
    other.add_tokens(["quick"])
    answers, now = _recorded_teacher(fail_after=10**6), {"tokenizer": tokenizer, "entry": {}, "failures": 0}

    def reply(path: str, body: dict, number: int):
        if now["failures"]:
            now["failures"] -= 1
            return 0, {}, None
        if path == "/v1/models":
            return 200, {}, {"data": [{"id": "teacher", "root": "a", "max_model_len": 4096, **now["entry"]}]}
        if path == "/tokenize":
            return 200, {}, {"tokens": now["tokenizer"].encode(body["prompt"], add_special_tokens=False)}
        return answers(path, body, number)

    service = recorded(reply)
    estimator = Estimator(baseline="none")

    def connected() -> ServerTeacher:
        now.update(tokenizer=tokenizer, entry={}, failures=0)
        server = TeacherServer(service.url, None, 0, 20)
        server.check(tokenizer, 100)
        return ServerTeacher(server, len(tokenizer), estimator)

    def become_another() -> None:
        now.update(
            tokenizer=other if change == "tokenizer" else tokenizer,
            entry={"root": {"root": "b"}, "max_model_len": {"max_model_len": 99}}.get(change, {}),
        )

    teacher = connected()
    assert teacher.server.submit([3], [7]).result().logprobs.tolist() == [-2.0]
    now["failures"] = 1  # the same model comes back
    assert teacher.server.submit([3], [7]).result().logprobs.tolist() == [-2.0]
    now["failures"] = 1
    become_another()
    message = refusal(teacher.server.submit([3], [7]).result, error=TeacherUnavailable)
    assert message.startswith(f"{service.url} holds another model than before: ")
    teacher = connected()
    become_another()
    refusal(teacher.views, [], error=TeacherUnavailable)
