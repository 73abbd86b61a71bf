"""The mathematics on random logits in float64: unbiasedness, optimality, and each closed form by enumeration."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from vopd_recipes.loss import METHODS, Estimator, Head, baselines, fused_loss, reference_loss
from vopd_recipes.loss.definition import gradient_variances

VOCABULARY = 11
SAMPLED = [Estimator(baseline=baseline, support_top_k=3) for baseline in baselines("sampled")]
SAMPLED += [
    Estimator(baseline="value_topk", support_top_k=3, support="teacher"),
    Estimator(baseline="value_topk", support_top_k=1),
    Estimator(baseline="value_topk", support_top_k=99),
]
# k from none to all of the tokens.
RAO_BLACKWELL = [
    Estimator("rao_blackwell", baseline, support, k)
    for baseline in baselines("rao_blackwell")
    for support in ("student", "teacher")
    for k in (0, 1, 5, VOCABULARY - 1, VOCABULARY)
]
ALL = SAMPLED + [Estimator(divergence="full"), Estimator(divergence="topk", support_top_k=3)]


def label(estimator: Estimator) -> str:
    return f"{estimator.method.key}-{estimator.support}-{estimator.support_top_k}"


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher logits [6, V], from nearly equal to far apart."""
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(6, VOCABULARY, generator=generator, dtype=torch.float64)
    distance = torch.tensor([0.01, 0.1, 0.5, 1, 2, 4], dtype=torch.float64)[:, None]
    teacher = student + distance * torch.randn(6, VOCABULARY, generator=generator, dtype=torch.float64)
    return student, teacher


def logit_gradient(student, teacher, targets, estimator, **options):
    """The gradient [N, V] of Σ_t ℓ_t."""
    student = student.clone().requires_grad_()
    weights = torch.ones(len(student), dtype=student.dtype)
    loss, stats = reference_loss(student, teacher, targets, estimator, token_weights=weights, **options)
    (gradient,) = torch.autograd.grad(loss, student)
    return gradient, stats


def enumerate_gradients(student, teacher, estimator):
    """Every token's probability [N, V] and gradient [N, V (sampled token), V]."""
    gradients = [
        logit_gradient(student, teacher, torch.full((len(student),), y), estimator)[0] for y in range(VOCABULARY)
    ]
    return student.softmax(-1), torch.stack(gradients, dim=1)


def expected_gradient(student, teacher, estimator):
    p, gradients = enumerate_gradients(student, teacher, estimator)
    return (p[..., None] * gradients).sum(1)


@pytest.mark.parametrize("estimator", SAMPLED + RAO_BLACKWELL, ids=label)
def test_expectation_over_all_tokens_is_the_full_gradient(logits, estimator):
    full, _ = logit_gradient(*logits, torch.zeros(6, dtype=torch.long), Estimator(divergence="full"))
    torch.testing.assert_close(expected_gradient(*logits, estimator), full, atol=1e-10, rtol=0)


def test_what_the_table_calls_biased_is(logits):
    """And nothing else that is a gradient of KL(p‖q)."""
    full, _ = logit_gradient(*logits, torch.zeros(6, dtype=torch.long), Estimator(divergence="full"))
    for row in (row for row in METHODS.values() if row.of_reverse_kl):
        mean = expected_gradient(*logits, Estimator(row.divergence, row.baseline, support_top_k=3))
        assert row.biased == bool((mean - full).norm() > 1e-9 * full.norm()), row.title


def test_full_gradient_is_the_closed_form(logits):
    student, teacher = logits
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    kl = (logp.exp() * (logp - logq)).sum(-1, keepdim=True)
    full, stats = logit_gradient(student, teacher, torch.zeros(6, dtype=torch.long), Estimator(divergence="full"))
    torch.testing.assert_close(full, logp.exp() * (logp - logq - kl), atol=1e-12, rtol=0)
    torch.testing.assert_close(stats.reverse_kl, kl[:, 0].float())


def test_topk_gradient_is_biased_until_k_is_the_vocabulary(logits):
    full, _ = logit_gradient(*logits, torch.zeros(6, dtype=torch.long), Estimator(divergence="full"))
    biased = expected_gradient(*logits, Estimator(divergence="topk", support_top_k=3))
    assert (biased - full).norm() > 0.1 * full.norm()
    whole = expected_gradient(*logits, Estimator(divergence="topk", support_top_k=VOCABULARY))
    torch.testing.assert_close(whole, full, atol=1e-10, rtol=0)


def test_support_that_follows_the_sample_would_be_biased(logits):
    """Why a support must not depend on y: adding the sampled token to it moves the mean by more than 1 %."""
    student, teacher = logits
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    p, top = logp.exp(), logp.topk(3, dim=-1).indices
    mean = torch.zeros_like(p)
    for y in range(VOCABULARY):
        support = torch.zeros_like(p, dtype=torch.bool).scatter_(1, top, True)
        support[:, y] = True
        on_support, teacher_there = (x.masked_fill(~support, -torch.inf).log_softmax(-1) for x in (logp, logq))
        kl = torch.where(support, on_support.exp() * (on_support - teacher_there), 0).sum(-1)
        score = torch.nn.functional.one_hot(torch.tensor(y), VOCABULARY) - p
        mean -= (p[:, y] * (logq[:, y] - logp[:, y] + kl))[:, None] * score
    full, _ = logit_gradient(student, teacher, torch.zeros(6, dtype=torch.long), Estimator(divergence="full"))
    assert (mean - full).norm() > 0.01 * full.norm()


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("estimator", SAMPLED + RAO_BLACKWELL, ids=label)
def test_gradient_variance_is_the_enumerated_variance(logits, estimator, clip):
    estimator = Estimator(**{**vars(estimator), "reward_clip_lambda": clip})
    p, gradients = enumerate_gradients(*logits, estimator)
    mean = (p[..., None] * gradients).sum(1, keepdim=True)
    enumerated = (p * (gradients - mean).square().sum(-1)).sum(1)
    _, stats = logit_gradient(*logits, torch.zeros(6, dtype=torch.long), estimator)
    torch.testing.assert_close(stats.gradient_variance, enumerated.float(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("estimator", RAO_BLACKWELL, ids=label)
def test_with_a_clipped_reward_every_baseline_and_support_has_the_same_mean(logits, estimator):
    """That of the exact average over all tokens, which is no KL's gradient any more."""
    clipped = replace(estimator, reward_clip_lambda=0.3)
    student, teacher = (x.log_softmax(-1) for x in logits)
    p, rewards = student.exp(), (teacher - student).clamp_min(clipped.reward_floor)
    exact = -(p * rewards - (p * rewards).sum(-1, keepdim=True) * p)
    torch.testing.assert_close(expected_gradient(*logits, clipped), exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize("baseline", baselines("sampled"))
def test_without_a_support_it_is_the_sampled_estimator(logits, baseline):
    targets = torch.arange(6)
    options = {"rollout_logprobs": torch.linspace(-3, 0, 6, dtype=torch.float64)}
    ours, stats = logit_gradient(*logits, targets, Estimator("rao_blackwell", baseline, support_top_k=0), **options)
    if baseline == "value_topk":
        baseline = "none"  # nothing is known on no token
    sampled, expected = logit_gradient(*logits, targets, Estimator("sampled", baseline), **options)
    torch.testing.assert_close(ours, sampled, atol=1e-12, rtol=0)
    torch.testing.assert_close(stats.gradient_variance, expected.gradient_variance)
    torch.testing.assert_close(stats.baseline, expected.baseline)


@pytest.mark.parametrize("baseline", baselines("rao_blackwell"))
def test_on_all_tokens_it_is_the_full_gradient_whatever_was_sampled(logits, baseline):
    estimator = Estimator("rao_blackwell", baseline, support_top_k=VOCABULARY)
    full, _ = logit_gradient(*logits, torch.zeros(6, dtype=torch.long), Estimator("full"))
    for y in range(VOCABULARY):
        weighted = {"rollout_logprobs": torch.full((6,), -9.0, dtype=torch.float64)}  # weighs nothing there
        ours, stats = logit_gradient(*logits, torch.full((6,), y), estimator, **weighted)
        torch.testing.assert_close(ours, full, atol=1e-12, rtol=0)
        torch.testing.assert_close(stats.gradient_variance, torch.zeros(6))
        torch.testing.assert_close(stats.support_mass_student, torch.ones(6))


def test_the_importance_weight_belongs_to_the_tail_alone(logits):
    estimator = Estimator("rao_blackwell", "value", support_top_k=3)
    inside = logits[0].topk(3).indices[:, 0]
    outside = logits[0].topk(VOCABULARY).indices[:, -1]
    rollout = {"rollout_logprobs": logits[0].log_softmax(-1).gather(1, outside[:, None])[:, 0] - math.log(1.5)}
    on_policy, _ = logit_gradient(*logits, inside, estimator)
    weighted, _ = logit_gradient(*logits, inside, estimator, rollout_logprobs=torch.full((6,), -7.0).double())
    torch.testing.assert_close(weighted, on_policy, atol=0, rtol=0)  # y in S: nothing is sampled
    tail = logit_gradient(*logits, outside, estimator)[0] - on_policy
    weighted_tail = logit_gradient(*logits, outside, estimator, **rollout)[0] - on_policy
    torch.testing.assert_close(weighted_tail, 1.5 * tail, atol=1e-12, rtol=0)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("support", ["student", "teacher"])
@pytest.mark.parametrize("k", [0, 1, 5, VOCABULARY - 2, VOCABULARY - 1, VOCABULARY])
def test_the_tails_optimal_baseline_minimises_its_variance(logits, clip, support, k):
    """Of every token, over all other baselines at the same support, and over constants beside it."""
    student, teacher = (x.log_softmax(-1) for x in logits)
    estimator = Estimator("rao_blackwell", None, support, k, reward_clip_lambda=clip)
    variances = gradient_variances(student, teacher, estimator)
    best = variances["rao_blackwell_optimal"]
    for other in baselines("rao_blackwell"):
        assert (best <= variances[f"rao_blackwell_{other}"] + 1e-14).all(), other
    _, stats = logit_gradient(*logits, torch.zeros(6, dtype=torch.long), estimator)
    for row, nudge in itertools.product(range(6), (-0.05, 0.05)):
        moved = replace(estimator, baseline="constant", baseline_constant=stats.baseline[row].item() + nudge)
        worse = gradient_variances(student, teacher, moved)["rao_blackwell_constant"][row] - best[row]
        assert worse > 0 if k < VOCABULARY else worse == 0  # then nothing is sampled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("height", [30.0, 200.0, 1e4])
@pytest.mark.parametrize("path", ["dense", "fused"])
def test_degenerate_tails_are_finite(path, height, dtype):
    """A tail of mass zero, one that underflows, and one that is a single certain token; y inside and outside of S."""
    certain = torch.zeros(4, 7, dtype=dtype)
    certain[:, 2] = height
    for teacher in (certain, certain.roll(3, dims=1), torch.zeros_like(certain)):
        for support, baseline in itertools.product(("student", "teacher"), baselines("rao_blackwell")):
            estimator, targets = Estimator("rao_blackwell", baseline, support, 1), torch.tensor([2, 0, 5, 6])
            leaf = certain.clone().requires_grad_()
            if path == "dense":
                loss, stats = reference_loss(leaf, teacher, targets, estimator)
            else:
                head = Head(torch.eye(7, dtype=dtype))
                loss, stats = fused_loss(leaf, head, teacher, head, targets, estimator, gradient_variance=True)
            (gradient,) = torch.autograd.grad(loss, leaf)
            values = [loss, gradient, stats.baseline, stats.advantage, *stats.gradient_variances.values()]
            assert all(value.isfinite().all() for value in values), (support, baseline)


def test_forward_kl_and_jensen_shannon_are_their_closed_forms(logits):
    student, teacher = logits
    p, q = student.softmax(-1), teacher.softmax(-1)
    targets = torch.zeros(6, dtype=torch.long)
    forward, _ = logit_gradient(student, teacher, targets, Estimator("forward"))
    torch.testing.assert_close(forward, p - q, atol=1e-12, rtol=0)
    for beta in (0.1, 0.5, 0.9):
        h = p.log() - (beta * q + (1 - beta) * p).log()
        ours, _ = logit_gradient(student, teacher, targets, Estimator("jsd", jsd_beta=beta))
        torch.testing.assert_close(ours, (1 - beta) * p * (h - (p * h).sum(-1, keepdim=True)), atol=1e-12, rtol=0)
    full, _ = logit_gradient(student, teacher, targets, Estimator("full"))
    for beta, limit, over in ((1e-9, forward, 1e-9), (1 - 1e-9, full, 1e-9)):
        ours, _ = logit_gradient(student, teacher, targets, Estimator("jsd", jsd_beta=beta))
        torch.testing.assert_close(ours / over, limit, atol=1e-4, rtol=1e-3)
        ends, _ = logit_gradient(student, teacher, targets, Estimator("jsd", jsd_beta=round(beta)))
        torch.testing.assert_close(ends, limit, atol=1e-12, rtol=0)


def test_the_reward_is_clipped_at_a_logarithm_over_a_number():
    """-1.39 at λ = 0.5, where log(λ/(1-λ)) would be 0."""
    assert Estimator(reward_clip_lambda=0.5).reward_floor == pytest.approx(math.log(0.5) / 0.5)
    assert Estimator(reward_clip_lambda=0.5).reward_floor == pytest.approx(-1.3863, abs=1e-4)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_optimal_baseline_minimises_the_variance_of_every_token(logits, clip):
    student, teacher = (x.log_softmax(-1) for x in logits)
    variances = gradient_variances(student, teacher, Estimator(support_top_k=3, reward_clip_lambda=clip))
    for other in ("value", "none", "constant", "value_topk"):
        assert (variances["optimal"] <= variances[other] + 1e-14).all(), other
    nudged = Estimator(baseline="constant", reward_clip_lambda=clip)
    _, stats = logit_gradient(*logits, torch.zeros(6, dtype=torch.long), Estimator(baseline="optimal"))
    for row, nudge in itertools.product(range(6), (-0.05, 0.05)):
        moved = Estimator(**{**vars(nudged), "baseline_constant": stats.baseline[row].item() + nudge})
        assert clip or gradient_variances(student, teacher, moved)["constant"][row] > variances["optimal"][row]


def test_value_advantage_has_zero_mean_and_is_not_zero(logits):
    student, teacher = logits
    p = student.softmax(-1)
    advantages = torch.stack(
        [
            logit_gradient(student, teacher, torch.full((6,), y), Estimator(baseline="value"))[1].advantage
            for y in range(VOCABULARY)
        ],
        dim=1,
    ).double()
    torch.testing.assert_close((p * advantages).sum(-1), torch.zeros(6).double(), atol=1e-6, rtol=0)
    assert (p * advantages.abs()).sum(-1).min() > 1e-3
    under_the_teacher = (teacher.softmax(-1) * advantages).sum(-1)
    assert under_the_teacher.max() > 0.1, "the expectation is under the student, not under the teacher"


def test_optimal_falls_back_to_value_where_the_student_is_certain():
    student = torch.tensor([[40.0, 0.0, 0.0]])
    teacher = torch.tensor([[1.0, 2.0, 3.0]])
    optimal, value = (
        reference_loss(student, teacher, torch.tensor([0]), Estimator(baseline=baseline))[1].baseline
        for baseline in ("optimal", "value")
    )
    torch.testing.assert_close(optimal, value)


@pytest.mark.parametrize("estimator", ALL, ids=label)
def test_equal_models_have_no_gradient_but_for_the_constant_baseline(logits, estimator):
    gradient, stats = logit_gradient(logits[0], logits[0], torch.arange(6), estimator)
    if estimator.baseline == "constant":
        assert gradient.norm() > 0.1, "the released OPD arm keeps pushing where there is nothing to learn"
    else:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
        torch.testing.assert_close(stats.advantage, torch.zeros(6))
    torch.testing.assert_close(stats.reverse_kl, torch.zeros(6))


def test_constant_baseline_is_the_undetached_reward(logits):
    """The released OPD arm differentiates -exp(log p - sg log p) r with r attached; at ratio 1 that is b = 1."""
    student, teacher = logits[0].clone().requires_grad_(), logits[1]
    targets = torch.arange(6)
    logp = student.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    reward = teacher.log_softmax(-1).gather(1, targets[:, None])[:, 0] - logp
    (released,) = torch.autograd.grad(-((logp - logp.detach()).exp() * reward).sum(), student)
    ours, _ = logit_gradient(*logits, targets, Estimator(baseline="constant", baseline_constant=1.0))
    torch.testing.assert_close(ours, released, atol=1e-12, rtol=0)


def test_importance_weight_is_truncated_and_detached(logits):
    targets = torch.arange(6)
    on_policy, stats = logit_gradient(*logits, targets, Estimator(baseline="value"))
    rollout = stats.student_logprob.double() - torch.tensor([0.0, 0.5, -0.5, 3.0, -3.0, 0.1]).double()
    weighted, _ = logit_gradient(*logits, targets, Estimator(baseline="value"), rollout_logprobs=rollout)
    expected = torch.tensor([0.0, 0.5, -0.5, 3.0, -3.0, 0.1]).double().exp().clamp_max(2.0)
    torch.testing.assert_close(weighted, expected[:, None] * on_policy, atol=1e-6, rtol=1e-6)


def test_clipped_reward_has_a_floor_and_its_own_value(logits):
    student, teacher = logits
    estimator = Estimator(baseline="value", reward_clip_lambda=0.4)
    rewards = (teacher.log_softmax(-1) - student.log_softmax(-1)).clamp_min(estimator.reward_floor)
    _, stats = logit_gradient(student, teacher, torch.arange(6), estimator)
    torch.testing.assert_close(stats.baseline, (student.softmax(-1) * rewards).sum(-1).float())
    assert stats.reward.min() >= estimator.reward_floor - 1e-6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"divergence": "full", "baseline": "value"}, "baseline: value has no effect with divergence: full"),
        ({"divergence": "topk", "baseline": "optimal"}, "baseline: optimal has no effect"),
        ({"divergence": "forwards"}, "divergence: 'forwards' is not one of sampled, full, topk"),
        ({"baseline": "mean"}, "baseline: 'mean' is not one of"),
        ({"support": "both"}, "support: 'both' is not one of student, teacher"),
        ({"support_top_k": 0}, "support_top_k must be at least 1"),
        ({"importance_sampling_cap": 0.0}, "importance_sampling_cap must be positive"),
        ({"reward_clip_lambda": 1.0}, "must lie in"),
        ({"divergence": "full", "reward_clip_lambda": 0.5}, "needs divergence: sampled"),
        ({"divergence": "forward", "baseline": "value"}, "has no effect with divergence: forward"),
        ({"divergence": "jsd", "reward_clip_lambda": 0.5}, "needs divergence: sampled or rao_blackwell"),
        ({"divergence": "sampled", "baseline": "tail"}, "baseline: tail has no meaning with divergence: sampled; use"),
        ({"divergence": "rao_blackwell", "support_top_k": -1}, "support_top_k must be at least 0"),
        ({"jsd_beta": 1.5}, r"jsd_beta must lie in \[0, 1\]"),
    ],
)
def test_meaningless_estimators_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Estimator(**options)


def test_baseline_defaults_to_value_only_where_it_means_something():
    assert Estimator().baseline == "value"
    assert Estimator(divergence="full").baseline == "none"
