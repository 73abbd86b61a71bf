"""This process and its children take a fake Hub for the real one, for as long as a test runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import WRITER, FakeHub
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from vopd_recipes.hub.revisions import limit_waiting


@contextmanager
def fake_hub_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Children read the environment when they start; this process has read it before, so its constants change."""
    with FakeHub() as hub:
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": WRITER,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)  # of huggingface_hub's own functions
        limit_waiting(3.0)
        yield hub
        set_client_factory(default_client_factory)
