"""The notebook runs as it stands, cell by cell in one process: what a kernel does with it, without a kernel."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_files import ROOT

NOTEBOOK = ROOT / "notebooks" / "first_run.ipynb"
# Every code cell of a notebook, one after the other, in one namespace.
RUNNER = """
import json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
names["figure"].savefig(sys.argv[2])
"""


@pytest.mark.slow  # two supervised trainings and two runs, of a few steps: the notebook is what a newcomer runs first
def test_the_notebook_runs(tmp_path: Path) -> None:
    picture = tmp_path / "figure.png"
    made = {"FIRST_RUN_FAST": "1", "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUNNER, str(NOTEBOOK), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | made, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = re.findall(r"(?m)^(vOPD|OPD): held-out reverse KL (\d+\.\d+) → (\d+\.\d+)$", done.stdout)
    assert [name for name, _, _ in numbers] == ["vOPD", "OPD"]
    assert numbers[0][1] == numbers[1][1]  # both begin as the same student
    assert picture.stat().st_size > 10_000


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    linked = re.findall(r"\]\((\.\./[^)]+)\)", NOTEBOOK.read_text())
    assert linked and all((NOTEBOOK.parent / link).is_file() for link in linked)
