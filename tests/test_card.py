"""The card says what the run's files say, and no number that no results file has."""

import json
import re
from pathlib import Path

import pytest
import yaml
from evaluation_records import ON_THE_HUB, named
from huggingface_hub import ModelCard

from evaluation.protocol import read_protocol
from evaluation.tasks import TASKS
from vopd_recipes.hub.card import Published, model_card
from vopd_recipes.loss import method_of
from vopd_recipes.paper import distilled, samples_of, undistilled
from vopd_recipes.recipe import is_hub_id

RECIPE = {
    "model_name_or_path": "Qwen/Qwen3-1.7B-Base", "teacher_model_name_or_path": "Qwen/Qwen3-1.7B",
    "dataset_name": "open-r1/DAPO-Math-17k-Processed", "divergence": "sampled", "baseline": "value",
    "learning_rate": 1e-5, "use_peft": False, "lora_r": 64, "max_steps": 223,
}  # fmt: skip
ENVIRONMENT = {
    "python": "3.11.7", "packages": {"torch": "2.13.0", "vllm": "0.32.0"}, "devices": ["NVIDIA H200"] * 2,
    "processes": 2, "distributed_type": "MULTI_GPU", "mixed_precision": "bf16", "git_revision": "abc123",
}  # fmt: skip


def task(avg, stderr, n=8, problems=500, **others):
    return {"avg": avg, "stderr": stderr, "pass": 0.848, "maj": 0.7012, "n": n, "problems": problems, **others}


RESULTS = {
    "schema_version": 1, "model": "org/name", "revision": "main", "weights_hash": "w1", "protocol": "paper",
    "sampling": {"math": {"temperature": 0.6}}, "backend": "vllm", "dtype": "bfloat16",
    "tasks": {
        "math500": named("math500") | task(0.6413, 0.0123), "aime24": named("aime24") | task(0.0525, 0.0313, 32, 30),
        "house": task(0.5, 0.25, 4, 7, title="House", dataset_name="house.jsonl"),
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (tmp_path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"global_step": 223, "log_history": [{"eval_accuracy": 0.9}]})
    )
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "training.png").write_bytes(b"\x89PNG")
    return tmp_path


def metadata_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_metadata(folder):
    metadata = metadata_of(
        model_card(Published(folder, "org/name", "main", {"main": RESULTS}, {"license": "apache-2.0"}))
    )
    index = metadata.pop("model-index")
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["on-policy-distillation", "reverse-kl", "vopd", "vopd-recipes"],
        "license": "apache-2.0",
        "base_model": "Qwen/Qwen3-1.7B-Base",
        "base_model_relation": "finetune",
        "datasets": ["open-r1/DAPO-Math-17k-Processed"],
    }
    assert [entry["name"] for entry in index] == ["name"]
    by_dataset = {entry["dataset"]["type"]: entry["metrics"] for entry in index[0]["results"]}
    assert by_dataset.keys() == {"HuggingFaceH4/MATH-500", "math-ai/aime24", "house.jsonl"}
    values = {metric["name"]: metric["value"] for metric in by_dataset["HuggingFaceH4/MATH-500"]}
    assert values == {"avg@8": 64.13, "pass@8": 84.8, "maj@8": 70.12}


def test_results_are_those_of_the_results_files_and_the_papers_stand_beside_them(folder):
    step = {**RESULTS, "revision": "step-00000100", "tasks": {"math500": named("math500") | task(0.61, 0.01)}}
    card = model_card(Published(folder, "org/name", "main", {"step-00000100": step, "main": RESULTS}))
    rows = [line for line in card.splitlines() if line.startswith("| `main`") or line.startswith("| `step")]
    assert rows[0] == "| `main` | MATH-500 | 64.13 ± 2.41 | 84.8 | 70.12 | 8 | 500 | 64.0/84.6 |"
    assert rows[1] == "| `main` | AIME 2024 | 5.25 ± 6.13 | 84.8 | 70.12 | 32 | 30 |  |"
    assert rows[3] == "| `step-00000100` | MATH-500 | 61.0 ± 1.96 | 84.8 | 70.12 | 8 | 500 |  |"
    assert "The paper reports AIME 2024 and 2025 together: 6.2/25.0." in card
    other_protocol = {**RESULTS, "protocol": "paper+max_new_tokens=64"}
    assert "64.0/84.6" not in model_card(Published(folder, "org/name", "main", {"main": other_protocol}))
    other_pair = yaml.safe_dump({**RECIPE, "teacher_model_name_or_path": "Qwen/Qwen3-8B"})
    (folder / "recipe.yaml").write_text(other_pair)
    assert "64.0/84.6" not in model_card(Published(folder, "org/name", "main", {"main": RESULTS}))


def test_every_task_is_an_entry_of_its_own(folder):
    """Also when the Hub's library, which makes one of equal data sets, configurations and splits, reads them again."""
    tasks = {name: named(name) | task(index / 100, 0.01) for index, name in enumerate(ON_THE_HUB)}
    card = model_card(Published(folder, "org/name", "main", {"main": {**RESULTS, "tasks": tasks}}))
    (model,) = metadata_of(card)["model-index"]
    assert ModelCard(card).data.to_dict()["model-index"][0]["results"] == model["results"]
    assert [entry["dataset"]["name"] for entry in model["results"]] == [title for title, *_ in ON_THE_HUB.values()]
    for index, entry in enumerate(model["results"]):
        assert [metric["name"] for metric in entry["metrics"]] == ["avg@8", "pass@8", "maj@8"]
        assert entry["metrics"][0]["value"] == index
    assert {entry["dataset"]["type"] for entry in model["results"]} == {id for _, id, *_ in ON_THE_HUB.values()}


def test_of_an_older_results_file_no_data_set_is_claimed(folder):
    """It has neither titles nor data sets: its rows go by the tasks' names, and it makes no entry in the metadata."""
    old = {**RESULTS, "tasks": {"math500": task(0.6413, 0.0123)}}
    card = model_card(Published(folder, "org/name", "main", {"main": old}))
    assert "| `main` | math500 | 64.13 ± 2.41 | 84.8 | 70.12 | 8 | 500 | 64.0/84.6 |" in card.splitlines()
    assert "model-index" not in metadata_of(card)
    both = {**RESULTS, "tasks": {**old["tasks"], "aime24": RESULTS["tasks"]["aime24"]}}
    index = metadata_of(model_card(Published(folder, "org/name", "main", {"main": both})))["model-index"]
    assert [entry["dataset"]["name"] for entry in index[0]["results"]] == ["AIME 2024"]


def test_the_papers_numbers_stand_beside_its_own_number_of_samples_only(folder):
    def row(name, n):
        results = {**RESULTS, "tasks": {name: task(0.5, 0.01, n)}}
        card = model_card(Published(folder, "org/name", "main", {"main": results}))
        assert ("AIME 2024 and 2025 together" in card) is (name == "aime24" and n == 32)
        return next(line for line in card.splitlines() if line.startswith("| `main`"))

    protocol = read_protocol("paper")
    assert {name: protocol.samples_of(name) for name in TASKS} == {name: samples_of(name) for name in TASKS}
    for name, number in distilled(RECIPE).items():
        if name in TASKS:
            assert row(name, protocol.samples_of(name)).endswith(f"| {number} |")
            assert row(name, protocol.samples_of(name) // 2).endswith("|  |")
    row("aime24", 32)
    row("aime24", 8)


def test_the_papers_numbers_do_not_stand_beside_a_file_of_ones_own(folder):
    own = named("math500") | {"dataset_name": "math500.jsonl", "dataset_config": None, "dataset_split": None}
    results = {**RESULTS, "tasks": {"math500": own | task(0.5, 0.01, problems=50)}}
    card = model_card(Published(folder, "org/name", "main", {"main": results}))
    assert next(line for line in card.splitlines() if line.startswith("| `main`")).endswith("| 50 |  |")


def test_a_prompt_with_a_fence_stays_inside_the_recipe(folder):
    recipe = {**RECIPE, "prompt_template": "{problem}\n```python\n````\n```\n# No heading"}
    (folder / "recipe.yaml").write_text(text := yaml.safe_dump(recipe, default_style="|"))
    card = model_card(Published(folder, "org/name", "main"))
    inside = re.search(r"^(`{3,})yaml\n(.*?)^\1$", card, re.S | re.M)
    assert inside[2] == text and len(inside[1]) == 5


def test_without_results_there_is_no_claim(folder):
    """Not even of what the trainer's own log says, nor of the paper."""
    card = model_card(Published(folder, "org/name", "step-00000100"))
    assert "## Results" not in card and "model-index" not in card and "90" not in card and "64.0" not in card
    prose = re.sub(r"```.*?```", "", card.split("---\n", 2)[2], flags=re.S)
    known = json.dumps([RECIPE, ENVIRONMENT, "step-00000100", "223", "Qwen3-1.7B", "1 × 2 ×", "17k"])
    assert [number for number in re.findall(r"\d+\.\d+|\d{2,}", prose) if number not in known] == []


def test_recipe_stands_verbatim_and_loading_names_the_revision(folder):
    card = model_card(Published(folder, "org/name", "step-00000100"))
    assert (folder / "recipe.yaml").read_text().strip() in card
    assert 'AutoModelForCausalLM.from_pretrained("org/name", revision="step-00000100")' in card
    assert 'LLM("org/name", revision="step-00000100")' in card and "plots/training.png" in card
    assert "2 × NVIDIA H200; 2 processes (MULTI_GPU)" in card and "torch 2.13.0" in card and "`abc123`" in card
    code = re.search(r"```python\n(.*?)```", card, re.S)
    compile(code[1], "card", "exec")


def test_adapters_say_what_they_adapt(folder):
    """The adapter's own file says it: a run may have started from a revision of an adapter."""
    adapter = {"r": 64, "base_model_name_or_path": RECIPE["model_name_or_path"], "revision": "v2"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    started = {"model_name_or_path": "org/name", "model_revision": "step-00000100"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "use_peft": True, **started}))
    card = model_card(Published(folder, "org/name", "main"))
    metadata = metadata_of(card)
    assert metadata["library_name"] == "peft" and metadata["base_model_relation"] == "adapter"
    assert metadata["base_model"] == "Qwen/Qwen3-1.7B-Base"
    assert 'from_pretrained("Qwen/Qwen3-1.7B-Base", revision="v2")' in card and "max_lora_rank=64" in card
    (folder / "adapter_config.json").unlink()
    assert "LoRA run merged into" in model_card(Published(folder, "org/name-merged", "main"))


def test_a_licence_of_its_own_is_named_and_linked(folder):
    licence = {"license": "other", "license_name": "research", "license_link": "https://host/LICENSE"}
    card = model_card(Published(folder, "org/name", "main", licence=licence))
    assert licence.items() <= metadata_of(card).items()
    assert "\n[`research`](https://host/LICENSE), as the base model [Qwen/Qwen3-1.7B-Base]" in card


def test_local_folders_are_no_base_models(folder):
    local = {**RECIPE, "model_name_or_path": "./data/student", "dataset_name": "./data/prompts"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(local))
    metadata = metadata_of(model_card(Published(folder, "org/name", "main")))
    assert not {"base_model", "base_model_relation", "datasets", "license"} & metadata.keys()
    assert is_hub_id("a/b") and not any(is_hub_id(name) for name in ("./a/b", "a", "a/b/c", "../b", None))


def test_a_prepared_set_is_known_by_its_source(folder):
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "dataset_name": "./dapo"}))
    environment = {**ENVIRONMENT, "prepared_from": ["open-r1/DAPO-Math-17k-Processed"]}
    (folder / "environment.json").write_text(json.dumps(environment))
    card = model_card(Published(folder, "org/name", "main"))
    assert metadata_of(card)["datasets"] == ["open-r1/DAPO-Math-17k-Processed"]
    assert "`./dapo` (prepared from [open-r1/DAPO-Math-17k-Processed](https://huggingface.co/datasets/open-r1" in card


@pytest.mark.parametrize("divergence", ["sampled", "full", "topk"])
@pytest.mark.parametrize("baseline", ["none", "constant", "value", "value_topk", "optimal"])
def test_every_estimator_has_a_name_and_an_equation(divergence, baseline):
    row = method_of({"divergence": divergence, "baseline": baseline})
    assert "OPD" in row.title and row.latex.count("{") == row.latex.count("}")


def run_of(teacher, student, data="data/dapo-math-17k", **fields):
    return {"teacher_model_name_or_path": teacher, "model_name_or_path": student, "dataset_name": data, **fields}


def test_the_papers_numbers_are_found_by_pair_method_and_data():
    pair = ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B-Base")
    assert distilled(run_of("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Base", divergence="full"))["aime"] == "14.3/40.0"
    science = {"sciknoweval_chemistry": "34.7", "gpqa": "28.4"}
    assert distilled(run_of(*pair, data="hicai-zju/SciKnowEval")) == science
    assert distilled(run_of(*pair, baseline="value_topk"))["math500"] == "64.9/84.8"
    for other in (
        run_of("Qwen/Qwen3-8B", "Qwen/Qwen3-4B-Base"),
        run_of(*pair, data="me/prompts"),
        run_of(*pair, baseline="optimal"),
        run_of(*pair, baseline="value_topk", support_top_k=100),
        run_of(*pair, baseline="value_topk", support="teacher"),
    ):
        assert distilled(other) == {}
    assert undistilled("Qwen/Qwen3-1.7B-Base")["gpqa"] == "20.4" and undistilled("me/mine") == {}


def test_the_papers_averages_are_the_means_of_its_columns():
    """Its last column, to its rounding: whoever copies a number wrong moves a mean."""
    numbers = json.loads((Path(__file__).parent.parent / "evaluation" / "paper.json").read_text())
    for model, average in numbers["average"].items():
        mean = sum(float(cell.split("/")[0]) for cell in numbers["models"][model]) / 4
        assert abs(mean - float(average)) < 0.11, model
