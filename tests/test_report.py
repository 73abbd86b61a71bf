"""Pictures and tables come from a run's own log, whatever of it is there."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from vopd_recipes.files import compare_runs, history_of, names_of, plot_comparison, plot_training, series

EVALUATIONS: list[dict[str, Any]] = [
    {"step": 0, "eval_accuracy": 0.25, "eval_reverse_kl": 0.8, "eval_completion_length": 20.0},
    {"step": 3, "eval_accuracy": 0.5, "eval_reverse_kl": 0.4, "eval_completion_length": 18.0},
]
UPDATES: list[dict[str, Any]] = [
    {
        "step": step,
        "reverse_kl": kl,
        "advantage/std": 2 * kl,
        "grad_norm": 3.0,
        "time/rollout": 1.0,
        "time/train": train,
    }
    for step, kl, train in ((1, 0.9, 3.0), (2, 0.7, 1.0), (3, 0.5, 0.5))
]
HISTORY = [EVALUATIONS[0], *UPDATES, EVALUATIONS[1], {"step": 3, "train_runtime": 10.0}]


def read_image(path: Path) -> np.ndarray:
    """The picture's pixels; it must be a whole PNG."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB"))


def write_run(folder: Path, history: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": history}))
    return folder


def test_series() -> None:
    assert series(HISTORY, "reverse_kl") == ([1, 2, 3], [0.9, 0.7, 0.5])
    assert series(HISTORY, "eval_accuracy") == ([0, 3], [0.25, 0.5])
    assert series(HISTORY, "no such metric") == series(HISTORY, None) == series([], "loss") == ([], [])


@pytest.mark.parametrize("history", [HISTORY, UPDATES[:1], []])
def test_a_training_picture(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    path = plot_training(history, tmp_path, title="a run")
    assert path == tmp_path / "plots" / "training.png"
    assert [file.name for file in path.parent.iterdir()] == ["training.png"]
    pixels = read_image(path)
    assert pixels.shape[0] >= 300
    assert pixels.shape[1] >= 1000
    if history:
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # lines, dots and text
    assert plt.get_fignums() == []  # nothing is left open


def test_a_picture_changes_with_the_run(tmp_path: Path) -> None:
    first = read_image(plot_training(HISTORY[:2], tmp_path))
    second = read_image(plot_training(HISTORY, tmp_path))
    assert first.shape != second.shape or (first != second).any()


def test_values_that_are_not_finite_are_drawn_around(tmp_path: Path) -> None:
    history = [
        {"step": 1, "grad_norm": float("nan")},
        {"step": 2, "grad_norm": 1.0},
        {"step": 3, "grad_norm": float("inf")},
    ]
    read_image(plot_training(history, tmp_path))


def test_a_table_of_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "vopd", HISTORY), write_run(tmp_path / "opd", UPDATES)]
    assert history_of(runs[0]) == HISTORY
    header, rule, *rows = compare_runs(runs).splitlines()
    assert header.count("|") == rule.count("|") == rows[0].count("|") == rows[1].count("|")
    assert rows == [
        "| vopd | 3 | 25.0% | 50.0% | 0.800 | 0.400 | 2.00 |",
        "| opd | 3 |  |  |  |  | 2.00 |",
    ]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """In the table by as many folders above them as it takes, and each is drawn."""
    others = [{**line, "eval_accuracy": 0.9} if "eval_accuracy" in line else line for line in HISTORY]
    places = [("a/x/vopd", HISTORY), ("b/x/vopd", others), ("opd", UPDATES)]
    runs = [write_run(tmp_path / place, history) for place, history in places]
    assert names_of(runs) == ["a/x/vopd", "b/x/vopd", "opd"]
    assert [row.split("|")[1].strip() for row in compare_runs(runs).splitlines()[2:]] == names_of(runs)
    assert names_of([Path("/vopd"), Path("/a/vopd"), Path("/a/vopd")]) == ["/vopd", "a/vopd", "a/vopd"]
    both = read_image(plot_comparison(runs[:2], tmp_path / "both.png"))
    second = read_image(plot_comparison(runs[1:2], tmp_path / "second.png"))
    assert (both != second).any()


def test_a_picture_of_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, HISTORY) for name in ("vopd", "opd")]
    path = plot_comparison(runs, tmp_path / "plots" / "comparison.png")
    assert len(np.unique(read_image(path).reshape(-1, 3), axis=0)) > 20
