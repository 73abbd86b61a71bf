"""What the recipes' pages say is so: the paper's numbers, times and memory, the index and the commands."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from recipe_files import BASES, RECIPES, ROOT, as_it_stands, resolved
from scaled_pairs import is_made_here

from evaluation.tasks import task_names
from vopd_recipes.loss import method_of
from vopd_recipes.paper import published_columns
from vopd_recipes.planner.explain import FLAG, take_flag
from vopd_recipes.planner.fitting import verdict
from vopd_recipes.planner.memory import GB, plan
from vopd_recipes.planner.setup import read_anywhere, read_setup

INDEX = Path("recipes/README.md")
PAGES = [INDEX, *(Path(base).with_name("README.md") for base in BASES)]

# Seconds a step of the paper's own code on one H200, of the two pairs that it gives them for.
PAPERS_SECONDS = {
    "qwen3-1.7b": {"OPD": 22.2, "OPD top-k": 31.0, "OPD full": 41.1, "vOPD top-k": 30.8, "vOPD": 30.6},
    "qwen3-4b": {"OPD": 25.1, "OPD top-k": 48.8, "OPD full": 77.7, "vOPD top-k": 32.9, "vOPD": 33.5},
}
STEPS = 220  # some 14,000 prompts, 64 a step
PAPERS_HOURS = "the paper says 2 to 6 hours a run on one H200 or A100"
TIMED_HERE = {
    "tiny-arithmetic/vopd.yaml": "2–3 min (ours)",
    "tiny-arithmetic/opd.yaml": "2–3 min (ours)",
    "smollm2-135m/vopd.yaml": "0.5 (ours)",
}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages name files from there."""
    monkeypatch.chdir(ROOT)


# Numbers -------------------------------------------------------------------------------------------------------------


def rows_of(text: str) -> dict[str, list[str]]:
    """First cell → the others, of every table row."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def published(name: str) -> dict[str, str]:
    """The paper's numbers for what a recipe trains; empty where it has no such run."""
    columns = published_columns("ours", resolved(name))
    return next((numbers for heading, numbers in columns.items() if heading != "paper, before"), {})


@pytest.mark.parametrize("base", BASES)
def test_readmes_have_the_published_numbers(base: str) -> None:
    """Every number of the paper's, and none where it has no such pair."""
    text = (Path(base).parent / "README.md").read_text()
    labels = {"vopd": "vOPD", "vopd_topk": "vOPD top-k", "opd": "OPD", "opd_topk": "OPD top-k", "opd_full": "OPD full"}
    rows = rows_of(text.partition("## Published")[2])
    if not published(base):
        assert not rows and "The paper has no" in text
        return
    for stem, label in labels.items():
        assert rows[label] == list(published(str(Path(base).with_name(f"{stem}.yaml"))).values())
    recipe = resolved(base)
    columns = published(base).keys()
    for model, role in ((recipe["model_name_or_path"], "before"), (recipe["teacher_model_name_or_path"], "teacher")):
        numbers = published_columns(model, {})["paper"]
        if columns <= numbers.keys():
            assert rows[f"{model.split('/')[1]}, {role}"] == [numbers[column] for column in columns]
    assert rows["ours"][0] == "not yet run"


@pytest.mark.slow  # it counts the activations of every pair, some five seconds each, and no README may claim less
@pytest.mark.parametrize("base", [base for base in BASES if "rollout_backend: vllm" in (ROOT / base).read_text()])
def test_readmes_have_the_planners_verdict(base: str) -> None:
    """Of one 80 GB GPU and of eight, with 64 sequences a step."""
    text = (Path(base).parent / "README.md").read_text()
    launches = [(base, gpus, []) for gpus in (1, 8)]
    for path in Path(base).parent.glob("*_from_*.yaml"):
        served = "teacher_backend: server" in path.read_text()
        launches += [(str(path), 8, []), (str(path), 1, [] if served else ["--teacher_offload", "true"])]
    for name, gpus, words in launches:
        words = [*words, "--gradient_accumulation_steps", str(64 // gpus)]
        planned = plan(read_setup(Path(name), words, gpus, 80 * GB))
        assert planned.fits and f"| {gpus} × 80 GB | {verdict(planned)} |" in text


@pytest.mark.parametrize("base", BASES)
def test_readmes_name_files_that_exist(base: str) -> None:
    text = (Path(base).parent / "README.md").read_text()
    named = re.findall(r"(?:recipes|scripts|tests)/[\w./-]+\.(?:yaml|py|json)", text)
    assert base in named and [name for name in named if not Path(name).is_file()] == []
    for path in Path(base).parent.glob("*.yaml"):
        assert f"[{path.name}]({path.name})" in text


@pytest.mark.parametrize("base", BASES)
def test_readmes_have_the_papers_times(base: str) -> None:
    pair = Path(base).parent
    text = (pair / "README.md").read_text()
    assert (PAPERS_HOURS in text) == (not is_made_here(str(as_it_stands(base).model.model_name_or_path)))
    seconds = PAPERS_SECONDS.get(pair.name, {})
    assert ("in seconds a step" in text) == bool(seconds)
    if seconds:
        assert f"\n{', '.join(f'{method} {value}' for method, value in seconds.items())};\n" in text
        assert f"over some {STEPS} steps {hours(base).removesuffix(' (paper)')} hours for vOPD." in text


def hours(name: str) -> str:
    """The paper's seconds a step over all steps, else what it says of every run of its own, else ours; or nothing."""
    short, pair = name.removeprefix("recipes/"), Path(name).parent.name
    if seconds := PAPERS_SECONDS.get(pair, {}).get(method_of(resolved(name)).title):
        return f"{seconds * STEPS / 3600:.1f} (paper)"
    return "2–6 (paper)" if published(name) else TIMED_HERE.get(short, "")


def test_the_index_lists_every_recipe() -> None:
    rows = {row: cells for row, cells in rows_of(INDEX.read_text()).items() if len(cells) == 8}
    links = {f"[{short}]({short})": name for name in RECIPES for short in [name.removeprefix("recipes/")]}
    assert rows.keys() - {"recipe", "---"} == links.keys()
    for link, name in links.items():
        student, teacher, method, data, hardware, time, average, ours = rows[link]
        recipe, numbers, pair = as_it_stands(name), published(name), Path(name).parent
        here = is_made_here(str(recipe.model.model_name_or_path))
        if not here:
            assert (student, teacher) == tuple(
                str(model).split("/")[1]
                for model in (recipe.model.model_name_or_path, recipe.model.teacher_model_name_or_path)
            )
        assert method == method_of(resolved(name)).title
        assert data and data.lower().replace(" ", "-") in Path(str(recipe.data.dataset_name)).parts
        label = f"{Path(name).name if '_from_' in name else 'vopd.yaml and its variants'} | {hardware} | fits"
        assert hardware == "2 CPU cores" if here else f"| {label}" in (pair / "README.md").read_text()
        assert time == hours(name)
        assert average == (numbers.get("average") or " / ".join(numbers.values()))
        assert ours == "not yet run" or (here and "](../" in ours)


def test_the_index_is_what_its_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stood there; `python scripts/index_recipes.py` brings it up to date."""
    script = runpy.run_path(str(ROOT / "scripts" / "index_recipes.py"))
    with_table = script["with_table"]
    index = INDEX.read_text()
    assert with_table(index) == index
    without_a_pair = re.sub(r"^\| \[qwen3-1.7b-chemistry/.*\n", "", index, flags=re.MULTILINE)  # the last one
    without_a_row = re.sub(r"^\| \[qwen3-4b/opd_full.*\n", "", index, flags=re.MULTILINE)
    of_no_pair = index.replace("| [qwen3-4b/vopd.yaml]", "| [none/vopd.yaml](a) | b |\n| [qwen3-4b/vopd.yaml]")
    for stale in (without_a_pair, without_a_row, of_no_pair, index.replace("| 45.4 |", "| 99.9 |")):
        assert stale != index and with_table(stale) == index
    monkeypatch.chdir(tmp_path)
    script["main"]()  # from anywhere
    assert (ROOT / INDEX).read_text() == index


# Commands ------------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """The words of every command in a page's blocks, without comments; `RECIPE` is some recipe."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").replace("RECIPE", BASES[0]).splitlines()
    return [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_understood(page: Path) -> None:
    """By accelerate, the recipe reader, make and the scripts; none is run."""
    found = commands(page)
    assert len(found) >= 4
    for command in found:
        match command:
            case ["accelerate", "launch", *words]:
                launched = launch_command_parser().parse_args(words)
                assert Path(launched.config_file or "Makefile").is_file()
                check_training([launched.training_script, *launched.training_script_args])
            case ["python", "scripts/run_vopd.py", *_]:
                check_training(command[1:])
            case ["python", script, *words]:
                source = Path(script).read_text()
                if elsewhere := re.search(r"from (vopd_recipes\.command\.\w+) import main", source):
                    source = Path("src", *elsewhere[1].split(".")).with_suffix(".py").read_text()
                assert [word for word in words if word[:2] == "--" and f'"{word}"' not in source] == []
                assert all(Path(word).is_file() for word in words if word.startswith("recipes/"))
            case ["make", "evaluate", *words]:
                check_evaluation(words)
            case _:
                assert command in (["make", "install"], [".", ".venv/bin/activate"], ["hf", "auth", "login"])


def check_training(command: list[str]) -> None:
    """The recipe is there, and has every field that is given, with a value that it may have."""
    script, *words = command
    assert script == "scripts/run_vopd.py"
    if FLAG in words:
        words = take_flag(words)[1]
    read_anywhere(Path(words[0]), words[1:])


def check_evaluation(words: list[str]) -> None:
    """Variables that the Makefile knows, tasks that there are, and a run that a recipe leaves."""
    values = dict(word.split("=", 1) for word in words)
    makefile = Path("Makefile").read_text()
    assert all(re.search(rf"\b{name}\b", makefile) for name in values)
    assert task_names(values["TASKS"])[1] == {}
    runs = [as_it_stands(name).training.output_dir for name in RECIPES]
    assert values["MODEL"] in runs or values["MODEL"].startswith("YOUR_NAME/")
