"""What CONTRIBUTING.md names is there, every path, every `module.name`, every room; and imports go as its map says."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vopd_recipes"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def untrue(page: str) -> list[str]:
    """Paths and dotted names that a page cites and that are not there; `<student>` stands for any."""
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL))
    quoted = re.findall(r"`([^`\n]+)`", page.replace("```", ""))
    words = [word for text in [*quoted, commands] for word in text.split()]
    words += re.findall(r"\]\(([^)]+)\)", page)
    return [word for word in dict.fromkeys(words) if is_path(word) and not exists(word)] + [
        text for text in dict.fromkeys(quoted) if re.fullmatch(r"[a-z_]\w*(\.\w+)+", text) and not known(text)
    ]


def is_path(word: str) -> bool:
    return "/" in word or re.search(r"\.(py|md|yaml|cfg|json)$", word) is not None


def exists(word: str) -> bool:
    """From the root or the package, outside of what an installation makes."""
    pattern = re.sub(r"<\w+>", "*", word).rstrip("/")
    return word.startswith(".venv/") or any(next(folder.glob(pattern), None) for folder in (ROOT, PACKAGE))


def known(name: str) -> bool:
    """`loss.fused_loss` is the package's, `evaluation.tasks.TASKS` is its own; a file's name is no module's."""
    if is_path(name):
        return True
    module, _, attribute = name.rpartition(".")
    prefix = "" if module.split(".")[0] == "evaluation" else "vopd_recipes."
    try:
        return hasattr(import_module(prefix + module), attribute)
    except ModuleNotFoundError:
        return False


def test_what_the_page_names_is_there() -> None:
    assert untrue(PAGE) == []


def test_every_room_is_on_the_map() -> None:
    rooms = [path.parent.name + "/" for path in PACKAGE.glob("*/__init__.py")]
    rooms += [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(rooms) > 10 and [room for room in rooms if f"`{room}`" not in PAGE] == []


def imports() -> list[tuple[str, str, str]]:
    """Room that imports, room that is imported, and the whole name in it, of every import between two rooms."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        importing = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if names == ["vopd_recipes"]:  # from vopd_recipes import paper
                names = [f"vopd_recipes.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("vopd_recipes.") and (imported := name.split(".")[1]) != importing:
                    found.append((importing, imported, name))
    return found


def test_rooms_import_from_rooms_and_never_in_a_circle() -> None:
    found = [one for one in imports() if one[0] != "__init__"]
    assert len(found) > 100
    inside = [name for _, _, name in found if name.count(".") > 1]
    assert inside == [], "a room's own module is imported from outside"
    below = {room: {to for of, to, _ in found if of == room} for of, to, _ in found for room in (of, to)}
    while lowest := [room for room, imported in below.items() if not imported]:
        below = {room: imported - {*lowest} for room, imported in below.items() if room not in lowest}
    assert below == {}, "rooms that import one another"


@pytest.mark.parametrize(
    "text",
    ["`loss/nowhere.py`", "`recipes/<student>/nothing.yaml`", "`loss.no_such_loss`", "`nosuch.module.name`",
     "`python scripts/nothing.py --field`", "```bash\npython scripts/nothing.py\n```", "[there](docs/nothing.md)"],
)  # fmt: skip
def test_what_is_not_there_is_found(text: str) -> None:
    assert len(untrue(text)) == 1
