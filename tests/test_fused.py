"""fused = dense: loss, statistics and every gradient, over all methods and the shapes that go wrong."""

import shutil
from dataclasses import fields

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from vopd_recipes.loss import Estimator, Head, TokenStats, baselines, fused_loss, reference_loss

ESTIMATORS = [Estimator(baseline=baseline, support_top_k=5) for baseline in baselines("sampled")]
ESTIMATORS += [
    Estimator(baseline="value_topk", support_top_k=5, support="teacher"),
    Estimator(divergence="full"),
    Estimator(divergence="topk", support_top_k=5),
    Estimator(divergence="topk", support_top_k=5, support="teacher"),
    Estimator(baseline="value", reward_clip_lambda=0.3),
    Estimator(baseline="optimal", reward_clip_lambda=0.3),
    *(Estimator("rao_blackwell", baseline, support_top_k=5) for baseline in baselines("rao_blackwell")),
    *(Estimator("rao_blackwell", baseline, "teacher", 5, reward_clip_lambda=0.3) for baseline in ("tail", "optimal")),
    Estimator("rao_blackwell", support_top_k=0),
    Estimator("rao_blackwell", "tail", support_top_k=99),
    Estimator("forward"),
    *(Estimator("jsd", jsd_beta=beta) for beta in (0.0, 0.1, 0.5, 0.9, 1.0)),
]
CASES = {
    "plain": {},
    "ragged chunk": {"count": 23, "chunk_size": 5},
    "one token": {"count": 1},
    "no token": {"count": 0},
    "weights zero": {"weights": "zero"},
    "uneven weights": {"weights": "random", "rollout": True},
    "biases": {"bias": True},
    "logit scale": {"scale": (0.3, 1.7)},
    "softcap": {"softcap": (3.0, 5.0), "bias": True, "scale": (0.5, 1.0)},
    "two hidden sizes": {"teacher_size": 24},
    "student padded more": {"vocabularies": (67, 61)},
    "teacher padded more": {"vocabularies": (61, 67), "bias": True},
}


def label(estimator: Estimator) -> str:
    clip = "-clipped" if estimator.reward_clip_lambda else ""
    of_support, beta = f"{estimator.support}{estimator.support_top_k}", f"-{estimator.jsd_beta:g}"
    return f"{estimator.method.key}-{of_support}{clip}{beta if estimator.divergence == 'jsd' else ''}"


def make_inputs(dtype, count=20, teacher_size=16, vocabularies=(61, 61), bias=False, weights=None, rollout=False, **_):
    generator = torch.Generator().manual_seed(count)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    inputs = {
        "student_hidden": normal(count, 16),
        "student_weight": normal(vocabularies[0], 16) / 4,
        "teacher_hidden": normal(count, teacher_size),
        "teacher_weight": normal(vocabularies[1], teacher_size) / 4,
        "targets": torch.randint(min(vocabularies), (count,), generator=generator),
        "student_bias": normal(vocabularies[0]) if bias else None,
        "teacher_bias": normal(vocabularies[1]) if bias else None,
    }
    if weights:
        inputs["token_weights"] = torch.zeros(count) if weights == "zero" else torch.rand(count, generator=generator)
    if rollout:
        inputs["rollout_logprobs"] = -4 + torch.randn(count, generator=generator)
    return inputs


def logits_of(hidden, weight, bias, scale, softcap):
    logits = hidden @ weight.t()
    logits = scale * (logits if bias is None else logits + bias)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def dense(inputs, estimator, scale=(1.0, 1.0), softcap=(None, None), **_):
    """`reference_loss` on logits formed in float32 (or float64) from the same inputs."""
    accumulate = torch.float64 if inputs["student_hidden"].dtype == torch.float64 else torch.float32
    names = ("hidden", "weight", "bias")
    heads = []
    for i, side in enumerate(("student", "teacher")):
        parts = [inputs[f"{side}_{name}"] for name in names]
        parts = [part if part is None else part.to(accumulate) for part in parts]
        heads.append(logits_of(*parts, scale[i], softcap[i]))
    options = {name: inputs.get(name) for name in ("token_weights", "rollout_logprobs")}
    return reference_loss(*heads, inputs["targets"], estimator, **options)


def fused(
    inputs,
    estimator,
    scale=(1.0, 1.0),
    softcap=(None, None),
    chunk_size=None,
    gradient_variance=True,
    compiled=False,
    **_,
):
    heads = [
        Head(inputs[f"{side}_weight"], inputs[f"{side}_bias"], scale[i], softcap[i])
        for i, side in enumerate(("student", "teacher"))
    ]
    options = {name: inputs.get(name) for name in ("token_weights", "rollout_logprobs")}
    return fused_loss(
        inputs["student_hidden"], heads[0], inputs["teacher_hidden"], heads[1], inputs["targets"], estimator,
        chunk_size=chunk_size, gradient_variance=gradient_variance, compiled=compiled, **options,
    )  # fmt: skip


def run(path, inputs, case, estimator, trained, upstream=1.7):
    """Loss, statistics and gradients; `upstream` scales the loss, as loss scaling and accumulation do."""
    leaves = ["student_hidden"] + (["student_weight", "student_bias"] if trained else [])
    leaves = [name for name in leaves if inputs[name] is not None]
    inputs = {**inputs, **{name: inputs[name].clone().requires_grad_() for name in leaves}}
    loss, stats = path(inputs, estimator, **case)
    gradients = torch.autograd.grad(upstream * loss, [inputs[name] for name in leaves])
    return loss.detach(), stats, dict(zip(leaves, gradients))


def assert_same(ours, theirs, tolerance):
    loss, stats, gradients = ours
    expected_loss, expected_stats, expected_gradients = theirs

    def close(actual, expected, name):
        scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
        torch.testing.assert_close(
            actual.double(), expected.double(), atol=tolerance * scale, rtol=tolerance,
            msg=lambda message: f"{name}: {message}",
        )  # fmt: skip

    close(loss, expected_loss, "loss")
    for field in fields(TokenStats):
        actual, expected = getattr(stats, field.name), getattr(expected_stats, field.name)
        if expected is None:
            assert actual is None, field.name
        elif field.name == "gradient_variances":
            assert actual.keys() == expected.keys()
            for name in actual:
                close(actual[name], expected[name], f"variance of {name}")
        else:
            assert actual.dtype == torch.float32 and not actual.requires_grad
            close(actual, expected, field.name)
    for name, gradient in gradients.items():
        close(gradient, expected_gradients[name], f"gradient of {name}")


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=label)
def test_fused_is_dense_in_float32(estimator, case, trained):
    inputs = make_inputs(torch.float32, **case)
    assert_same(*(run(path, inputs, case, estimator, trained) for path in (fused, dense)), tolerance=1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=label)
def test_fused_is_dense_for_bfloat16_inputs(estimator, case):
    inputs = make_inputs(torch.bfloat16, **case)
    assert_same(*(run(path, inputs, case, estimator, True) for path in (fused, dense)), tolerance=1e-2)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=label)
def test_fused_is_dense_in_float64(estimator):
    inputs = make_inputs(torch.float64)
    assert_same(*(run(path, inputs, {}, estimator, True) for path in (fused, dense)), tolerance=1e-7)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=label)
def test_tied_embeddings_receive_both_gradients(estimator):
    """One parameter as embedding and as head, as in small models."""
    inputs = make_inputs(torch.float32)
    gradients = []
    for path in (fused, dense):
        embedding = inputs["student_weight"].clone().requires_grad_()
        tied = {
            **inputs,
            "student_hidden": torch.tanh(embedding[inputs["targets"]]),
            "student_weight": embedding,
        }
        gradients += torch.autograd.grad(path(tied, estimator)[0], embedding)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_chunk_size_does_not_matter():
    inputs = make_inputs(torch.float32, count=23)
    whole = run(fused, inputs, {}, Estimator(), True)
    for chunk_size in (1, 7, 22, 23, 100):
        assert_same(run(fused, inputs, {"chunk_size": chunk_size}, Estimator(), True), whole, tolerance=1e-5)


@pytest.mark.slow  # some ten seconds of compiling each: a wrong graph would be nobody's error
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize(
    ("estimator", "case"),
    [
        (Estimator(), {}),
        (Estimator("full"), CASES["softcap"]),
        (Estimator("rao_blackwell", "optimal", "teacher", 5, reward_clip_lambda=0.3), {}),
    ],
    ids=["value", "full-softcap", "rao_blackwell"],
)
def test_compiled_is_plain(estimator, case):
    """In one graph, for blocks of two sizes."""
    torch.compiler.reset()
    counters.clear()
    for sized in ({"weights": "random", "rollout": True}, {"weights": "random", "rollout": True, "count": 52}):
        inputs, options = make_inputs(torch.float32, **sized, **case), {**case, "gradient_variance": False}
        plain = run(fused, inputs, options, estimator, True)
        assert_same(run(fused, inputs, {**options, "compiled": True}, estimator, True), plain, tolerance=1e-6)
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]


def test_without_gradients_only_statistics_are_computed():
    inputs = make_inputs(torch.float32)
    expected, stats, _ = run(fused, inputs, {}, Estimator(), True)
    trained = {**inputs, "student_weight": inputs["student_weight"].clone().requires_grad_()}
    products = []  # with the logit gradient

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.addmm_.default, torch.ops.aten.addmm.out):
                products.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watched():
        loss, same = fused(trained, Estimator())
    assert not loss.requires_grad and not products
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(same.reverse_kl, stats.reverse_kl)


def test_variances_are_computed_only_when_asked_for():
    _, stats = fused(make_inputs(torch.float32), Estimator(), gradient_variance=False)
    assert stats.gradient_variance is None and stats.gradient_variances is None


def test_a_second_backward_is_refused_instead_of_wrong():
    inputs = make_inputs(torch.float32)
    inputs["student_hidden"].requires_grad_()
    loss, _ = fused(inputs, Estimator())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already used"):
        loss.backward()


def test_peaked_distributions_stay_finite():
    """Logits tens of nats apart, as a trained model has: nothing overflows and the baseline stays a mean."""
    inputs = make_inputs(torch.float32)
    inputs["student_weight"] *= 40
    inputs["teacher_weight"] *= 40
    for estimator in ESTIMATORS:
        loss, stats, gradients = run(fused, inputs, {}, estimator, True)
        assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())
        assert all(getattr(stats, field.name).isfinite().all() for field in fields(TokenStats)[:7])
        assert stats.gradient_variance.isfinite().all()
