"""Every method times every seed on one recipe: the runs, several at a time, resumable, each on its own.

A run is `scripts/run_vopd.py` itself in a process of its own, so that it is what a user would get. A run that is done
is not done again, one that was cut off goes on from its last checkpoint, and one that fails costs no other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

SCRIPT = Path(__file__).parents[3] / "scripts" / "run_vopd.py"


@dataclass(frozen=True)
class Method:
    """An estimator that is compared.

    Args:
        name: of its runs' folders.
        title: as tables have it.
        flags: what makes it differ from the recipe.
    """

    name: str
    title: str
    flags: tuple[str, ...]


def _sampled(name: str, title: str, baseline: str, *more: str) -> Method:
    return Method(name, title, ("--divergence", "sampled", "--baseline", baseline, *more))


def _exact(name: str, title: str, divergence: str) -> Method:
    return Method(name, title, ("--divergence", divergence, "--baseline", "none"))


_ALL = (
    _sampled("opd", "OPD", "none"),
    _sampled("opd_constant", "OPD as released (constant 1)", "constant", "--baseline_constant", "1"),
    _exact("opd_full", "OPD full", "full"),
    _exact("opd_topk", "OPD top-k (20)", "topk"),
    _sampled("vopd", "vOPD", "value"),
    *(
        _sampled(f"vopd_topk_{k}", f"vOPD top-k ({k})", "value_topk", "--support_top_k", str(k))
        for k in (5, 20, 100)
    ),
    _sampled("vopd_optimal", "vOPD, optimal baseline", "optimal"),
)  # fmt: skip
METHODS = {method.name: method for method in _ALL}


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Args:
        method: which.
        seed: of prompts' order, rollouts and adapters.
        folder: its `output_dir`.
    """

    method: Method
    seed: int
    folder: Path

    @property
    def done(self) -> bool:
        """Whether it was trained to its end."""
        return (self.folder / "trainer_state.json").is_file()

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_suffix(".log")


def plan(output: Path, methods: Sequence[Method], seeds: Sequence[int]) -> list[Run]:
    """Every run, seed by seed: cut off anywhere, the methods that are there can be compared."""
    return [Run(method, seed, output / f"{method.name}-seed{seed}") for seed in seeds for method in methods]


def execute(runs: Sequence[Run], recipe: Path, flags: Sequence[str], jobs: int) -> dict[Run, str]:
    """Train what is not done yet; the runs that failed, with the last line each printed.

    Args:
        runs: all of them.
        recipe: of all.
        flags: for all, `--field value`.
        jobs: how many run at a time; the cores are divided among them.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    waiting = [run for run in runs if not run.done]
    failed: dict[Run, str] = {}
    with (
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="Runs", unit="run") as bar,
    ):
        started = {pool.submit(_train, run, recipe, flags, environment): run for run in waiting}
        for future in as_completed(started):
            run = started[future]
            if future.result() != 0 or not run.done:
                failed[run] = _last_line(run.log)
            bar.update()
            bar.set_postfix_str(f"{len(failed)} failed" if failed else "")
    return failed


def _train(run: Run, recipe: Path, flags: Sequence[str], environment: dict[str, str]) -> int:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(SCRIPT), str(recipe), *flags, *run.method.flags]
    words += ["--seed", str(run.seed), "--output_dir", str(run.folder), "--disable_tqdm", "true"]
    with run.log.open("w", encoding="utf-8") as log:
        return subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or ["it printed nothing"])[-1].strip()
