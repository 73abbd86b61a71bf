"""The walks of CONTRIBUTING.md: a made-up rollout engine and a made-up teacher backend, each a module and a word."""

import sys
from types import ModuleType

import pytest
from accelerate import Accelerator
from conftest import TinyPair
from transformers import AutoModelForCausalLM

from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.rollout import Completion, build_rollout
from vopd_recipes.teacher import LocalTeacher, as_teachers, connect_to_teacher, teacher_tokenizer


def module(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    made = ModuleType(name)
    vars(made).update(functions)
    monkeypatch.setitem(sys.modules, name, made)


class Silent:
    """Every completion is the end token."""

    stale = False

    def __init__(self, wanted) -> None:
        self.end = min(wanted.eos_token_ids)

    def generate(self, prompts, seeds, max_new_tokens) -> list[Completion]:
        return [Completion([self.end], [0.0], True) for _ in prompts]

    def sync(self, named_weights) -> None:
        pass


@pytest.fixture
def student(tiny_pair: TinyPair):
    return AutoModelForCausalLM.from_pretrained(tiny_pair.student)


def test_a_made_up_engine_is_its_module(monkeypatch, write_recipe, student, tokenizer) -> None:
    module(monkeypatch, "vopd_recipes.rollout.silent_engine", build=Silent)
    recipe = load_recipe(write_recipe())
    recipe.training.rollout_backend = "silent"
    engine = build_rollout(
        recipe.training, student, Accelerator(cpu=True), tokenizer, len(tokenizer), lambda: 8, recipe.model
    )
    assert [one.token_ids for one in engine.generate([[1], [2]], [0, 1], 4)] == [[tokenizer.eos_token_id]] * 2


def test_a_made_up_teacher_is_its_module(monkeypatch, write_recipe, student, tokenizer) -> None:
    teacher = LocalTeacher(student, Accelerator(cpu=True))
    module(
        monkeypatch, "vopd_recipes.teacher.borrowed_backend",
        teacher_tokenizer=lambda recipe, tokenizer: tokenizer,
        connect_to_teacher=lambda recipe, tokenizer, longest: teacher,
    )  # fmt: skip
    recipe = load_recipe(write_recipe())
    recipe.training.teacher_backend = "borrowed"
    assert teacher_tokenizer(recipe, tokenizer) is tokenizer
    found = connect_to_teacher(recipe, tokenizer, 8)
    named = as_teachers({None: found}, student, Accelerator(cpu=True), lambda: student, (), False)
    assert named == {None: teacher}


@pytest.mark.parametrize("field", ["rollout_backend", "teacher_backend"])
def test_a_word_that_the_recipe_does_not_know_is_refused(field, write_recipe) -> None:
    with pytest.raises(RecipeError, match=rf"recipe.yaml:\d+: {field} must be one of .*, got .silent."):
        load_recipe(write_recipe(**{field: "silent"}))


def test_a_word_without_its_module_falls_through_to_no_other(write_recipe, student, tokenizer) -> None:
    recipe = load_recipe(write_recipe())
    recipe.training.rollout_backend = recipe.training.teacher_backend = "absent"
    with pytest.raises(ModuleNotFoundError, match="absent_engine"):
        build_rollout(recipe.training, student, Accelerator(cpu=True), tokenizer, len(tokenizer), lambda: 8, None)
    with pytest.raises(ModuleNotFoundError, match="absent_backend"):
        connect_to_teacher(recipe, tokenizer, 8)
