"""Every page leads somewhere: relative links and their sections, addresses by their form, no network."""

import argparse
import ast
import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
from recipe_files import BASES, ROOT, as_it_stands

from vopd_recipes.command import COMMANDS
from vopd_recipes.command.train import take_processes
from vopd_recipes.data import load_data_recipe
from vopd_recipes.machine.command import RANDOM
from vopd_recipes.planner import GB, plan, read_setup, verdict
from vopd_recipes.planner.setup import OF_THE_MACHINE, read_anywhere
from vopd_recipes.recipe import RecipeError, find_recipe
from vopd_recipes.training import agreement

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("recipes/**/README.md")),
    *sorted(ROOT.glob("evaluation/**/*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")


def prose(page: Path) -> str:
    """A page without its code, in which brackets and `#` mean something else."""
    return re.sub(r"`[^`\n]*`", "`code`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))


def links(page: Path) -> list[str]:
    return [first or second for first, second in LINK.findall(prose(page))]


def sections(page: Path) -> list[str]:
    """The anchors that GitHub gives to a page's headings: lower case, no punctuation, `-1` where one comes again."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w -]", "", shown.lower()).strip().replace(" ", "-")
        same = len([one for one in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one)])
        found.append(f"{slug}-{same}" if same else slug)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in links(page):
        if "://" in link:
            address = urlsplit(link)
            assert address.scheme == "https" and re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", address.netloc), link
            continue
        file, _, section = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if section:
            assert section in sections(target), link


def test_the_check_sees_what_is_wrong(tmp_path: Path) -> None:
    """Code is no heading, a heading that comes twice has a number, a link in a heading counts by its text."""
    page = tmp_path / "page.md"
    page.write_text(
        "# One `x`: two\n```bash\n# no heading ](nowhere)\n```\n## A [b](c.md)\n## A b\n[x](#a-b-1) `[y](z)`\n"
    )
    assert sections(page) == ["one-x-two", "a-b", "a-b-1"]
    assert links(page) == ["c.md", "#a-b-1"]


@pytest.mark.parametrize("base", BASES)
def test_a_pairs_page_leads_to_its_models(base: str) -> None:
    """And has at least the links of its recipes."""
    recipe, found = as_it_stands(base), links((ROOT / base).with_name("README.md"))
    for name in (str(recipe.model.model_name_or_path), str(recipe.model.teacher_model_name_or_path)):
        assert name.startswith("data/") or f"https://huggingface.co/{name}" in found
    assert len(found) >= 6


def test_every_page_of_docs_is_in_the_index() -> None:
    listed = links(ROOT / "docs" / "README.md")
    assert [path.name for path in ROOT.glob("docs/*.md") if path.name not in {"README.md", *listed}] == []


# Commands and recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", *(name for name in NAMES if name.startswith("docs/"))])
def test_commands_are_vopds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subcommands that there are, recipes that come with it, fields with values that they may have; none is run."""
    monkeypatch.chdir(ROOT)
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)).replace("\\\n", " ")
    mine = ROOT / "recipes" / "template.yaml"
    for line in blocks.splitlines():
        words = shlex.split(line, comments=True)
        if "scripts/run_vopd.py" in words and not re.search(r"[$[]", line):
            recipe, *flags = words[words.index("scripts/run_vopd.py") + 1 :]
            read_anywhere(mine if recipe in ("recipes/mine.yaml", "RECIPE") else ROOT / recipe, flags)
        match words:
            case ["vopd", command, *words]:
                check_command(command, words, monkeypatch)
            case ["docker", "run", *words] if "vopd-recipes" in words:
                command, *words = words[words.index("vopd-recipes") + 1 :]
                check_command(command, words, monkeypatch)


class Parsed(Exception):
    """What a command was told; raised in place of its work."""

    def __init__(self, options: argparse.Namespace, left: list[str]) -> None:
        super().__init__(left)
        self.options, self.left = options, left


def parsed(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """By the command's own parser, which it makes before it does anything; a wrong word ends as in a shell."""
    parse = argparse.ArgumentParser.parse_known_args

    def stop(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
        raise Parsed(*parse(parser, args, namespace))

    with monkeypatch.context() as patched, pytest.raises(Parsed) as found:
        patched.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        import_module(COMMANDS[command].module).main(words)
    return found.value


def check_command(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags that it has, and of a recipe the fields."""
    assert command in COMMANDS
    if "--help" in words:
        return
    if command in ("train", "explain", "check"):  # they read their words themselves
        recipe, *left = words
        left = take_processes(left)[1] if command != "check" else [word for word in left if word != RANDOM]
    else:
        found = parsed(command, words, monkeypatch)
        recipe, left = getattr(found.options, "recipe", ""), found.left
    if command == "data":
        load_data_recipe(find_recipe(recipe, "data"), left)
    elif recipe:
        read_anywhere(ROOT / "recipes" / "template.yaml" if recipe == "mine.yaml" else find_recipe(recipe), left)
    else:
        assert left == []


@pytest.mark.parametrize(
    "line",
    [
        "plan qwen3-1.7b/vopd --gpu 1", "plan qwen3-1.7b/vopd --sharding half", "plan qwen3-1.7b/nothing",
        "check qwen3-1.7b/vopd --randm", "explain qwen3-1.7b/vopd --max_step 3", "evaluate a/b --tsk math",
        "report run --outptu a.html", "publish run --hub-modelid org/name", "publish", "download org/name --lst",
        "data gsm8k --promt_column a", "data nothing",
    ],
)  # fmt: skip
def test_what_is_no_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *words = line.split()
    with pytest.raises((RecipeError, SystemExit, AssertionError)):
        check_command(command, words, monkeypatch)


def test_your_own_data_is_four_rows_and_a_recipe_of_ten_lines(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your_own_data.md").read_text()
    rows = [json.loads(line) for line in page.partition("```json\n")[2].partition("```")[0].splitlines()]
    recipe = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "mine.yaml").write_text(recipe)
    read = read_anywhere(tmp_path / "mine.yaml", [])[0]
    assert (len(rows), len(recipe.splitlines()), len(read.sources.keys() - OF_THE_MACHINE.keys())) == (4, 10, 10)
    assert {read.data.prompt_column, read.data.answer_column} == rows[0].keys()
    assert "use_cpu" not in recipe and read.data.prompt_template == "{prompt}\n"


# Lines that are quoted -----------------------------------------------------------------------------------------------


def said_by_the_sources() -> str:
    """Every text of the package, values in it as `…`."""
    found = []
    for path in sorted(ROOT.glob("src/vopd_recipes/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_troubleshooting_quotes_lines_that_there_are() -> None:
    """Each clause between two values, as far as it is longer than a name."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^(?:error|warning): (.*)$", page, re.MULTILINE)
    said = said_by_the_sources()
    clauses = [part.strip(" ;:'") for line in quoted for part in re.split(r"…|; |: ", line)]
    assert len(quoted) > 15 and [each for each in clauses if len(each) > 12 and each not in said] == []


def test_troubleshooting_has_the_gaps_that_stop_a_run() -> None:
    """In the order of the page: in float32, rounded before the first step, rounded or with dropout later."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    told = page.partition("## A log-probability gap")[2].partition("→ ")[2].partition(": ")[0]
    limits = agreement._LARGEST_EXACT, agreement._LARGEST_ROUNDED, agreement._LARGEST_LATER
    assert [float(word) for word in re.findall(r"above ([\d.]+)", told)] == [*limits]


def test_the_image_has_the_versions_that_were_tried() -> None:
    dockerfile, makefile = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    torch = re.search(r"^TORCH := (.*)$", makefile, re.MULTILINE)
    assert torch and f'"torch=={torch[1]}"' in dockerfile
    asked = re.search(r'-e "\.\[([\w,]+)\]"', dockerfile)
    extras = re.findall(r"^(\w+) =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert asked and {*asked[1].split(",")} == {"eval", "vllm"} <= {*extras}
    copied = {name for line in re.findall(r"^COPY (.*) \./$", dockerfile, re.MULTILINE) for name in line.split()}
    assert copied and all((ROOT / name).is_file() for name in copied)


# Figures -------------------------------------------------------------------------------------------------------------


def fits_on_one() -> list[tuple[str, str, int, str]]:
    """(recipe, flags, GB, verdict) of each line of the page about one GPU."""
    found = []
    for size, text in re.findall(r"^## (\d+) GB\n(.*?)(?=^## )", (ROOT / "docs/one_gpu.md").read_text(), re.M | re.S):
        for recipe, flags, said in re.findall(r"^\| ([\w./-]+/\w+) \| (?:`(.*?)`)? ?\| (.*?) \|$", text, re.M):
            found.append((recipe, flags, int(size), said))
    return found


def test_the_page_of_one_gpu_has_lines_for_both_sizes() -> None:
    assert {(size, recipe.partition("/")[0]) for recipe, _, size, _ in fits_on_one()} >= {
        (24, "qwen3-0.6b"), (24, "qwen3-1.7b"), (24, "qwen3-4b"), (80, "qwen3-4b"), (80, "qwen3-8b"), (80, "olmo3-7b")
    }  # fmt: skip


@pytest.mark.slow  # it counts the activations of every pair, some five seconds each, and no page may claim less
@pytest.mark.parametrize(("recipe", "flags", "size", "said"), fits_on_one())
def test_what_fits_on_one_gpu(recipe: str, flags: str, size: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    planned = plan(read_setup(find_recipe(recipe), shlex.split(flags), 1, size * GB))
    assert planned.fits and verdict(planned) == said
