"""The template is a recipe: as it stands, and with any of its alternatives."""

import re
from pathlib import Path

import pytest
import yaml
from recipe_files import ROOT

from vopd_recipes.planner.setup import OF_THE_MACHINE, read_anywhere
from vopd_recipes.recipe import RecipeError
from vopd_recipes.recipe.config import describe_fields

TEMPLATE = ROOT / "recipes" / "template.yaml"
ALTERNATIVES = re.findall(r"^# (\w+: [^#\n]+?) *(?:#.*)?$", TEMPLATE.read_text(), re.MULTILINE)
TOGETHER = {
    "dataset_test_split": ["--test_size", "0"],
    "chat_template_kwargs": ["--chat_template", "true"],
    "teacher_backend": ["--teacher_server_url", "http://node7:8000", "--teacher_server_scores", "hidden_states"],
    "teacher_server_url": ["--teacher_backend", "server", "--teacher_server_scores", "hidden_states"],
    "teacher_server_scores": ["--teacher_backend", "server", "--teacher_server_url", "http://node7:8000"],
    "push_to_hub": ["--hub_model_id", "org/name"],
}


def test_it_reads_as_it_stands_and_every_line_has_its_reason() -> None:
    recipe, _ = read_anywhere(TEMPLATE, [])
    assert recipe.training.estimator.method.title == "vOPD" and recipe.data.prompt_template
    text = TEMPLATE.read_text()
    values = yaml.safe_load(text)
    assert len(values) > 45 and values.keys() - recipe.sources.keys() <= {*OF_THE_MACHINE}
    assert [
        line for line in re.findall(r"^[a-z_]+: \S.*$", TEMPLATE.read_text(), re.MULTILINE) if "#" not in line
    ] == []


@pytest.mark.parametrize("line", ALTERNATIVES)
def test_its_alternatives_are_fields_with_values_that_they_may_have(line: str) -> None:
    name, _, value = line.partition(": ")
    if name == "extends":
        return
    given = [f"--{name}", value, *TOGETHER.get(name, [])]
    recipe, of_the_machine = read_anywhere(TEMPLATE, given)
    assert f"--{name}" in [*recipe.sources.values(), *(where for _, where in of_the_machine.values())]


def test_it_names_most_of_our_fields() -> None:
    """Those that it leaves out are for few."""
    text = TEMPLATE.read_text()
    names = [name for name, _, _ in describe_fields()]
    assert len(ALTERNATIVES) > 12 and len([name for name in names if f"{name}:" in text]) > 0.6 * len(names)


def test_a_copy_with_a_misspelt_field_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text(TEMPLATE.read_text().replace("lora_alpha:", "lora_alfa:"))
    with pytest.raises(RecipeError, match=r"mine\.yaml:21: unknown field 'lora_alfa'; did you mean 'lora_alpha'"):
        read_anywhere(copy, [])
