"""Tiny real models on disk, prompts to go with them, and a process that never asks the Hub."""

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A make that a test starts is nobody's submake, also where `make test` started the tests: it would say which folder it
# enters, and take the variables of that command.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)

# Before anything imports torch or datasets; subprocesses inherit all of it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="vopd-datasets-")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402

from vopd_recipes.tiny import pair as tiny  # noqa: E402
from vopd_recipes.tiny import problems as arithmetic  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: when two workers take files in turn, neither ends with a long one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@dataclass(frozen=True)
class TinyPair:
    """Folders of two Qwen3 models that share the byte tokenizer."""

    teacher: Path
    student: Path


def sharpened(model: PreTrainedModel, factor: float = 8.0) -> PreTrainedModel:
    """Random weights times `factor`: context matters, and the next-token distribution is far from uniform."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(factor)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """257 tokens: bytes, and the end token 256."""
    return tiny.byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> TinyPair:
    """Random Qwen3s, two layers each: the teacher 64 wide with its own head, the student 32 wide with a tied one."""
    folder = tmp_path_factory.mktemp("tiny-pair")
    pair = TinyPair(folder / "teacher", folder / "student")
    tiny.save(sharpened(tiny.tiny_qwen3(64, 2, seed=1, tie_word_embeddings=False)), tokenizer, pair.teacher)
    tiny.save(sharpened(tiny.tiny_qwen3(32, 2, seed=2)), tokenizer, pair.student)
    return pair


@pytest.fixture(scope="session")
def problem_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.jsonl` with 24 problems and `test.jsonl` with 6: columns prompt, solution, answer."""
    folder = tmp_path_factory.mktemp("problems")
    arithmetic.write(folder, *arithmetic.split("chain", train=24, test=6))
    return folder


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_pair: TinyPair, problem_folder: Path) -> Callable[..., Path]:
    """Write `<name>.yaml`, a recipe of the tiny pair that runs in seconds; a field given as None is left out."""
    base = {
        "model_name_or_path": str(tiny_pair.student),
        "teacher_model_name_or_path": str(tiny_pair.teacher),
        "dataset_name": str(problem_folder),
        "answer_column": "answer",
        "max_completion_length": 8,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "output_dir": str(tmp_path / "run"),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }

    def write(name: str = "recipe", **fields: object) -> Path:
        path = tmp_path / f"{name}.yaml"
        kept = {key: value for key, value in {**base, **fields}.items() if value is not None}
        path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A fake Hub in place of the real one."""
    from using_fake_hub import fake_hub_in_use  # late: few tests need it

    with fake_hub_in_use(monkeypatch, tmp_path) as hub:
        yield hub


@pytest.fixture
def api(hub: Any) -> Any:
    """A client of the fake Hub that may write there."""
    from fake_hub import WRITER
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=WRITER)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder that names its owner."""
    folder = tmp_path / "home" / "alicesmith"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("LOGNAME", "alicesmith")
    return folder


@pytest.fixture
def recorded() -> Iterator[Any]:
    """Start servers that answer as told: `recorded(reply)`; see `teacher_service.Recorded`."""
    from teacher_service import Recorded  # late: few tests need it

    started: list[Recorded] = []

    def start(reply: Callable[..., Any]) -> Recorded:
        started.append(Recorded(reply))
        return started[-1]

    yield start
    for service in started:
        service.close()
