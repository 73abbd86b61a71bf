"""One table of methods: a new row is known everywhere, and a method without its lines is refused by name."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from vopd_recipes.evidence.outcome import compared
from vopd_recipes.loss import (
    METHODS,
    Estimator,
    Head,
    Method,
    Scores,
    baselines,
    fused_loss,
    logprobs_loss,
    method_of,
    reference_loss,
)
from vopd_recipes.loss.from_logprobs import reference_logprobs_loss
from vopd_recipes.planner.explain import explain
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.reporting.page import report_page

MEDIAN = Method(
    name="opd_median",
    title="OPD, median baseline",
    divergence="sampled",
    baseline="median",
    equation="-(r(y) - median r) ∇log p(y), r(y) = {reward}",
    html="−(<i>r</i> − median) ∇",
    latex=r"-(r_t - \tilde r)\nabla\log p(y_t)",
    needs="distribution",
)


@pytest.fixture
def median(monkeypatch: pytest.MonkeyPatch) -> Method:
    """A made-up row, in the table for the length of a test."""
    monkeypatch.setitem(METHODS, ("sampled", "median"), MEDIAN)
    return MEDIAN


def test_a_new_row_is_explained(median, write_recipe) -> None:
    text = explain(write_recipe(baseline="median"), [], 1)
    assert "# gradient: -(r(y) - median r) ∇log p(y), r(y) = log q(y) - log p(y), at each completion token" in text


def test_a_new_row_is_compared(median, write_recipe) -> None:
    method = compared()["opd_median"]
    assert method.title == "OPD, median baseline"
    assert load_recipe(write_recipe(), list(method.flags)).training.estimator.method is median


def test_a_new_row_is_reported(median, write_recipe, tmp_path: Path) -> None:
    folder = tmp_path / "finished"
    folder.mkdir()
    resolved = load_recipe(write_recipe(baseline="median")).resolved()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(resolved))
    line = {"step": 1, "loss": 0.1, "reverse_kl": 0.5, "gradient_variance/none": 2.0}
    line |= {
        "gradient_variance/median": 1.0,
        "gradient_variance_ratio/median": 0.5,
        "gradient_variance_ratio/none": 1.0,
    }
    state = {"global_step": 1, "max_steps": 1, "log_history": [line]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    page = report_page([folder])
    assert MEDIAN.title in page and MEDIAN.html in page
    assert '<td class="number last" data-heading="OPD, median baseline">' in page


def test_a_row_without_its_lines_is_refused_by_name(median) -> None:
    estimator, head, hidden = Estimator(baseline="median"), Head(torch.randn(7, 4)), torch.randn(3, 4)
    scores = Scores(torch.zeros(3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1))
    message = "has no lines for divergence: sampled, baseline: median \\(OPD, median baseline\\)"
    with pytest.raises(NotImplementedError, match=f"fused_loss {message}"):
        fused_loss(hidden, head, hidden, head, torch.arange(3), estimator)
    with pytest.raises(NotImplementedError, match=f"logprobs_loss {message}"):
        logprobs_loss(hidden, head, torch.arange(3), scores, estimator)
    with pytest.raises(NotImplementedError, match=message):
        reference_loss(hidden, hidden, torch.arange(3), estimator)
    with pytest.raises(NotImplementedError, match=f"reference_logprobs_loss {message}"):
        reference_logprobs_loss(hidden, torch.arange(3), scores, estimator)


def test_a_new_divergence_falls_through_to_no_other(monkeypatch) -> None:
    row = Method("opd_chi", "OPD chi", "chi", "none", "∇χ", "∇χ", r"\nabla\chi", "distribution", samples=False)
    monkeypatch.setitem(METHODS, ("chi", "none"), row)
    head, hidden = Head(torch.randn(7, 4)), torch.randn(3, 4)
    for loss in (
        lambda: fused_loss(hidden, head, hidden, head, torch.arange(3), Estimator("chi")),
        lambda: reference_loss(hidden, hidden, torch.arange(3), Estimator("chi")),
    ):
        with pytest.raises(NotImplementedError, match="divergence: chi, baseline: none"):
            loss()


def test_a_new_sampled_divergence_falls_through_to_no_other(monkeypatch) -> None:
    """Over a server too, and in the variances of all methods."""
    row = Method("opd_chi", "OPD chi", "chi", "none", "∇χ", "∇χ", r"\nabla\chi", "support", has_support=True)
    monkeypatch.setitem(METHODS, ("chi", "none"), row)
    head, hidden = Head(torch.randn(7, 4)), torch.randn(3, 4)
    scores = Scores(torch.zeros(3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1))
    for loss in (
        lambda: logprobs_loss(hidden, head, torch.arange(3), scores, Estimator("chi")),
        lambda: reference_logprobs_loss(hidden, torch.arange(3), scores, Estimator("chi")),
        lambda: fused_loss(hidden, head, hidden, head, torch.arange(3), Estimator(), gradient_variance=True),
        lambda: reference_loss(hidden, hidden, torch.arange(3), Estimator()),
    ):
        with pytest.raises(NotImplementedError, match="divergence: chi, baseline: none"):
            loss()


def test_moments_of_a_new_divergence_are_no_others(monkeypatch) -> None:
    row = Method("chi_optimal", "chi", "chi", "optimal", "∇χ", "∇χ", r"\nabla\chi", "distribution")
    monkeypatch.setitem(METHODS, ("chi", "optimal"), row)
    head, hidden = Head(torch.randn(7, 4)), torch.randn(3, 4)
    with pytest.raises(NotImplementedError, match="divergence: chi, baseline: optimal"):
        fused_loss(hidden, head, hidden, head, torch.arange(3), Estimator("chi", "optimal"))


def test_what_needs_a_support_has_one() -> None:
    with pytest.raises(ValueError, match="has_support=True"):
        Method("opd_chi", "OPD chi", "chi", "none", "∇χ", "∇χ", r"\nabla\chi", "support")


def test_an_empty_word_is_no_method() -> None:
    with pytest.raises(ValueError, match="baseline: '' is not one of"):
        Estimator(baseline="")
    for fields in ({"divergence": "sampled", "baseline": ""}, {"divergence": ""}, {"divergence": "kl"}):
        with pytest.raises(ValueError, match="is not one of"):
            method_of(fields)


@pytest.mark.parametrize("field, word", [("divergence", "kl"), ("baseline", "mean")])
def test_a_word_of_no_row_is_refused_with_its_line(field, word, write_recipe) -> None:
    with pytest.raises(RecipeError, match=rf"recipe.yaml:\d+: {field}: '{word}' is not one of "):
        load_recipe(write_recipe(**{field: word}))


def test_a_server_gets_every_method_that_it_can_serve(write_recipe) -> None:
    server = {"teacher_backend": "server", "teacher_server_url": "http://127.0.0.1:9"}
    for row in METHODS.values():
        fields = {"divergence": row.divergence, "baseline": row.baseline, **server}
        if row.needs == "distribution":
            with pytest.raises(RecipeError, match="whole distribution.*use divergence: sampled and"):
                load_recipe(write_recipe(**fields))
        else:
            assert load_recipe(write_recipe(**fields)).training.estimator.method is row


def test_names_and_keys_are_unique_and_equations_complete() -> None:
    rows = METHODS.values()
    assert len({row.name for row in rows}) == len({row.key for row in rows}) == len({row.title for row in rows})
    for row in rows:
        estimator = Estimator(row.divergence, row.baseline)
        assert "{" not in estimator.html and estimator.equation.startswith(("-", "∇"))
        assert method_of(row.fields) is row


NEEDS = {"sampled": "`log q(y)`", "support": "k tokens", "distribution": "all of `q`"}


def told_by_the_readme() -> dict[tuple[str, str], tuple[str, str]]:
    """Words of a recipe → what the table of estimators says is needed of the teacher, and the title."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    lines = text.partition("### Estimators\n")[2].partition("\n\nWhich one to take")[0].strip().splitlines()
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for line in lines[2:]:
        divergence, words, _, needs, title = (cell.strip() for cell in line.strip("|").split("|"))
        needed, _, other = needs.partition("; ")  # "…; … for `one` and `another`"
        otherwise, _, of_these = other.partition(" for ")
        above = [word for _, word in found] if "any of the above" in words else []
        for word in dict.fromkeys([*re.findall(r"`(\w+)`", words), *above]) or ["none"]:
            found[divergence.strip("`"), word] = (otherwise if f"`{word}`" in of_these else needed, title.strip("*"))
    return found


def test_the_readme_has_every_method_its_title_and_what_it_needs() -> None:
    told = told_by_the_readme()
    assert told.keys() == METHODS.keys()
    for words, row in METHODS.items():
        needed, title = told[words]
        assert needed == NEEDS[row.needs], words
        name = re.split("[:,]", title)[0]
        assert name == row.title or (name == "Rao-Blackwell" and row.title.startswith(name)), words


def test_the_default_baseline_is_one_of_its_divergence() -> None:
    for divergence, _ in METHODS:
        assert Estimator(divergence).baseline in baselines(divergence)
