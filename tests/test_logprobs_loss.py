"""A server's few log-probabilities give the local gradient: scored = dense, fused = dense, and still unbiased."""

import math
from dataclasses import replace

import pytest
import torch

from vopd_recipes.loss import (
    METHODS,
    Estimator,
    Head,
    Scores,
    TokenStats,
    logprobs_loss,
    reference_loss,
    student_support,
)
from vopd_recipes.loss.from_logprobs import reference_logprobs_loss
from vopd_recipes.teacher.server import read_scores

K = 5
ESTIMATORS = {
    "none": Estimator(baseline="none"),
    "constant": Estimator(baseline="constant"),
    "teacher": Estimator(baseline="value_topk", support_top_k=K, support="teacher"),
    "student": Estimator(baseline="value_topk", support_top_k=K),
    "clipped": Estimator(baseline="value_topk", support_top_k=K, support="teacher", reward_clip_lambda=0.3),
    "exact none": Estimator("rao_blackwell", "none", "teacher", K),
    "exact constant": Estimator("rao_blackwell", "constant", "student", K),
    "exact value_topk": Estimator("rao_blackwell", "value_topk", "teacher", K),
    "exact tail": Estimator("rao_blackwell", "tail", "teacher", K),
    "exact student": Estimator("rao_blackwell", "tail", "student", K),
    "exact clipped": Estimator("rao_blackwell", "tail", "teacher", K, reward_clip_lambda=0.3),
}
FIELDS = ("student_logprob", "teacher_logprob", "reward", "baseline", "advantage", "entropy")


def scores_of(student_logits, teacher_logits, targets, estimator: Estimator, k: int = K) -> Scores:
    """What a server would say, from the whole distribution."""
    teacher_logp = teacher_logits.detach().log_softmax(-1)
    ranked = student_logits.detach() if estimator.support == "student" else teacher_logp
    ids = ranked.topk(k, dim=-1).indices
    return Scores(teacher_logp.gather(1, targets[:, None])[:, 0], ids, teacher_logp.gather(1, ids))


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(12, 31, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_equals_the_local_estimator(logits, name) -> None:
    estimator, targets = ESTIMATORS[name], torch.arange(12)
    rollout = torch.linspace(-6, -1, 12, dtype=torch.float64)
    student = logits[0].clone().requires_grad_()
    expected, stats = reference_loss(student, logits[1], targets, estimator, rollout_logprobs=rollout)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    scores = scores_of(*logits, targets, estimator)
    loss, scored_stats = reference_logprobs_loss(student, targets, scores, estimator, rollout_logprobs=rollout)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-10, rtol=0)
    for field in FIELDS:
        torch.testing.assert_close(getattr(scored_stats, field), getattr(stats, field), atol=1e-6, rtol=0)
    if estimator.divergence == "sampled":
        unclipped = stats.student_logprob - stats.teacher_logprob
        torch.testing.assert_close(scored_stats.reverse_kl, unclipped)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", ["plain", "ragged", "softcap", "weights", "no token", "frozen", "shared"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_sweep_equals_its_definition(name, case, dtype, tolerance) -> None:
    estimator = ESTIMATORS[name]
    generator = torch.Generator().manual_seed(1)
    count = 0 if case == "no token" else 23

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    hidden = normal(count, 16).requires_grad_()
    weight, bias = (normal(61, 16) / 4).requires_grad_(case != "frozen"), normal(61).requires_grad_(case != "frozen")
    head = Head(weight, bias, 0.7, 3.0) if case == "softcap" else Head(weight, bias)
    products = hidden @ weight.t() + bias
    vocabulary = 47 if case == "shared" else 61
    logits = (products if case != "softcap" else 3 * torch.tanh(0.7 * products / 3))[:, :vocabulary]
    targets = torch.randint(vocabulary, (count,), generator=generator)
    scores = scores_of(logits, normal(count, vocabulary), targets, estimator)
    scores.support_ids[count // 2 :, -2:] = -1  # rows with a smaller support
    options = {"rollout_logprobs": -4 + normal(count)}
    if case == "weights":
        options["token_weights"] = torch.rand(count, generator=generator).to(dtype)
    expected, stats = reference_logprobs_loss(logits, targets, scores, estimator, **options)
    trained = [tensor for tensor in (hidden, weight, bias) if tensor.requires_grad]
    expected_gradients = torch.autograd.grad(expected, trained, retain_graph=True)
    chunk_size = 5 if case == "ragged" else None
    options |= {"vocabulary": vocabulary, "chunk_size": chunk_size}
    loss, fused_stats = logprobs_loss(hidden, head, targets, scores, estimator, **options)
    gradients = torch.autograd.grad(loss, trained)
    torch.testing.assert_close(loss, expected, atol=tolerance, rtol=tolerance)
    for gradient, wanted in zip(gradients, expected_gradients):
        torch.testing.assert_close(gradient, wanted, atol=tolerance, rtol=tolerance)
    for field in TokenStats.__dataclass_fields__:
        if not field.startswith("gradient") and getattr(stats, field) is not None:
            torch.testing.assert_close(getattr(fused_stats, field), getattr(stats, field), atol=1e-5, rtol=1e-5)
    assert fused_stats.gradient_variances is None


def answer(teacher_logp: torch.Tensor, token: int, k: int) -> dict[str, dict[str, float]]:
    """A position as vLLM answers: the token that is there, and the top k."""
    top = teacher_logp.topk(k).indices.tolist()
    return {str(index): {"logprob": teacher_logp[index].item(), "rank": 1} for index in [token, *top]}


def mean_gradient(student, teacher_logp, estimator: Estimator, scores_for, vocabulary: int) -> torch.Tensor:
    """Σ_y p(y) g(y) of one position, over every token that could have been sampled; the head is the identity."""
    size = student.shape[1]
    hidden = student.expand(vocabulary, -1).clone().requires_grad_()
    parts = [scores_for(teacher_logp[0], token) for token in range(vocabulary)]
    scores = Scores(*(torch.cat([getattr(part, name) for part in parts]) for name in Scores.__dataclass_fields__))
    scores.support_ids[scores.support_ids >= vocabulary] = -1
    weights = torch.ones(vocabulary, dtype=torch.float64)
    head, targets = Head(torch.eye(size, dtype=torch.float64)), torch.arange(vocabulary)
    loss, _ = logprobs_loss(hidden, head, targets, scores, estimator, vocabulary=vocabulary, token_weights=weights)
    (gradient,) = torch.autograd.grad(loss, hidden)
    return (student[:, :vocabulary].softmax(-1).t() * gradient).sum(0)


@pytest.mark.parametrize("vocabulary", [31, 19])
def test_the_support_of_an_answer_does_not_depend_on_the_sampled_token(logits, vocabulary: int) -> None:
    """So the gradient's mean over all tokens is that of the KL; with the sampled token left in, it is not.

    With fewer shared tokens than the student's head has: no token beyond is sampled, nor changed.
    """
    student, teacher_logp = logits[0][:1], logits[1][:1].log_softmax(-1)
    differentiable = student.clone().requires_grad_()
    logp = differentiable[:, :vocabulary].log_softmax(-1)
    kl = (logp.exp() * (logp - teacher_logp[:, :vocabulary])).sum()  # but for a constant, whatever q has beyond
    (expected,) = torch.autograd.grad(kl, differentiable)

    def parsed(row, token):
        scores = read_scores([answer(row, token, K)], [token], K)
        exact = row.double()  # answers are float32 in the trainer; the identity is one of numbers, not of rounding
        ids = scores.support_ids
        return Scores(exact[token][None], ids, exact[ids.clamp_min(0)])

    def careless(row, token):
        ids = torch.tensor([[token, *row.topk(K).indices.tolist()]])
        return Scores(row[token][None], ids, row[ids])

    for name in ("none", "constant", "teacher", "exact none", "exact value_topk", "exact tail"):
        mean = mean_gradient(student, teacher_logp, ESTIMATORS[name], parsed, vocabulary)
        torch.testing.assert_close(mean, expected[0], atol=1e-10, rtol=0)
    biased = mean_gradient(student, teacher_logp, ESTIMATORS["teacher"], careless, vocabulary)
    assert (biased - expected[0]).norm() > 1e-3


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize(
    "words, k",
    [(words, k) for words, row in METHODS.items() if row.needs != "distribution"
     for k in ([0] if words[0] == "rao_blackwell" else []) + [1, K, 30, 31]],
)  # fmt: skip
@pytest.mark.parametrize("support", ["student", "teacher"])
def test_every_served_method_has_the_exact_gradient_for_its_mean(logits, words, support, k, clip) -> None:
    """Over every token that could have been sampled; of a clipped reward, -Σ p(v) max(r(v), floor) ∇log p(v)."""
    estimator = Estimator(*words, support, k, reward_clip_lambda=clip)
    student, teacher_logp = logits[0][:1], logits[1][:1].log_softmax(-1)
    logp = student.clone().requires_grad_()
    rewards = teacher_logp - logp.log_softmax(-1).detach()
    if clip is not None:
        rewards = rewards.clamp_min(math.log(clip) / (1 - clip))
    (expected,) = torch.autograd.grad(-(logp.softmax(-1).detach() * rewards * logp.log_softmax(-1)).sum(), logp)

    def scores_for(row: torch.Tensor, token: int) -> Scores:
        return scores_of(student, row[None], torch.tensor([token]), estimator, k)

    mean = mean_gradient(student, teacher_logp, estimator, scores_for, 31)
    torch.testing.assert_close(mean, expected[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("support", ["student", "teacher"])
def test_the_estimated_kl_has_the_exact_ones_mean(logits, support: str) -> None:
    student, teacher_logp = logits[0][:1], logits[1][:1].log_softmax(-1)
    p, count = student.softmax(-1)[0], student.shape[1]
    for name in ("teacher", "exact none"):
        estimator = replace(ESTIMATORS[name], support=support)
        rows = [tensor.expand(count, -1) for tensor in (student, teacher_logp)]
        scores = scores_of(*rows, torch.arange(count), estimator)
        _, stats = reference_logprobs_loss(rows[0], torch.arange(count), scores, estimator)
        kl = stats.reverse_kl.double()
        exact = (p * (student.log_softmax(-1) - teacher_logp)[0]).sum()
        torch.testing.assert_close((p * kl).sum(), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("logit", [0.0, 60.0, 500.0])
def test_a_tail_without_mass_is_finite(logit: float) -> None:
    """All of both models' mass on the support, to rounding and beyond; y inside and outside."""
    student = torch.zeros(2, 9)
    student[:, 3] = logit
    teacher_logp, targets = student.roll(1, dims=1).log_softmax(-1), torch.tensor([3, 7])
    scores = Scores(teacher_logp.gather(1, targets[:, None])[:, 0], torch.tensor([[3, 4]] * 2), teacher_logp[:, 3:5])
    for name in ("none", "tail", "value_topk"):
        hidden = student.clone().requires_grad_()
        estimator = Estimator("rao_blackwell", name, "teacher", 2)
        loss, stats = logprobs_loss(hidden, Head(torch.eye(9)), targets, scores, estimator)
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert loss.isfinite() and gradient.isfinite().all() and stats.baseline.isfinite().all()


@pytest.mark.parametrize("name", ["teacher", "exact value_topk", "exact tail", "exact none"])
def test_a_support_of_which_the_student_has_nothing(name: str) -> None:
    """The teacher's likeliest token may be one that the student lacks; there is no baseline then."""
    hidden, targets = (
        torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).requires_grad_(),
        torch.tensor([3, 7]),
    )
    scores = Scores(torch.tensor([-1.0, -2.0]), torch.tensor([[-1], [2]]), torch.tensor([[-0.5], [-0.5]]))
    loss, stats = logprobs_loss(
        hidden, Head(torch.eye(9)), targets, scores, replace(ESTIMATORS[name], support_top_k=1)
    )
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.isfinite() and gradient.isfinite().all() and stats.baseline[0] == 0 and stats.baseline[1].isfinite()


def test_the_students_support_is_its_top_k() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(11, 8, generator=generator), torch.randn(40, 8, generator=generator)
    ids = student_support(hidden, Head(weight), k=6, vocabulary=33, chunk_size=4)
    assert torch.equal(ids, (hidden @ weight[:33].t()).topk(6).indices)
    assert student_support(hidden[:0], Head(weight), k=6, vocabulary=33).shape == (0, 6)


def test_a_second_backward_is_refused() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    scores = Scores(torch.zeros(3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1))
    loss, _ = logprobs_loss(hidden, Head(torch.randn(7, 4)), torch.arange(3), scores, ESTIMATORS["none"])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already used"):
        loss.backward()
