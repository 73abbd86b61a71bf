"""What is evaluated: a model on the Hub, a local folder, or a LoRA adapter of either, and a hash of its weights.

The hash names the weights in results files and keys the answers that are kept: it is over the contents of the weight
files and of the configuration, and of the base model's where there is an adapter. A model that was trained again in
the same place is another model.
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from vopd_recipes.files import sha256_of
from vopd_recipes.recipe import RecipeError, one_line

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "recipe.yaml"]
_HASHED_BESIDE_WEIGHTS = ("config.json", "adapter_config.json")
_NO_FOLDER = "no such folder; as a Hub id"  # a folder in another has a Hub id's form: the Hub is asked, and both said
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """Weights on this machine.

    Args:
        name: Hub id, or a local folder relative to the working directory (its last two parts where it lies outside).
        revision: branch, tag or commit; `local` for a folder.
        folder: where its files are.
        base: the base model's folder where `folder` holds an adapter.
        weights_hash: SHA-256, see above.
        commit: of a model on the Hub, at which its files were fetched.
    """

    name: str
    revision: str
    folder: Path
    base: Path | None
    weights_hash: str
    commit: str | None = None

    @property
    def model_folder(self) -> Path:
        """Of the model that an adapter is applied to, or of the model."""
        return self.base or self.folder

    def recipe(self) -> dict[str, Any]:
        """The recipe that the weights were trained by; empty where there is none beside them, or one of others."""
        for folder in (self.folder, self.folder.parent):
            if (folder / "recipe.yaml").is_file():
                try:
                    read = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
                except (yaml.YAMLError, UnicodeDecodeError):
                    return {}
                return read if isinstance(read, dict) else {}
        return {}

    def adapter_rank(self) -> int:
        """The greatest of a LoRA adapter's ranks: some modules may have their own."""
        settings = _read_json(self.folder / "adapter_config.json")
        return max(int(rank) for rank in (settings["r"], *(settings.get("rank_pattern") or {}).values()))

    def window(self) -> int:
        """Tokens that prompt and completion may have together.

        Raises:
            RecipeError: transformers does not know the configuration.
        """
        try:
            config = AutoConfig.from_pretrained(self.model_folder).get_text_config()
        except Exception as error:
            raise RecipeError(
                f"MODEL: {self.name}: its configuration cannot be read: {one_line(error, 300)}"
            ) from error
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The adapter's own where it has one.

        Raises:
            RecipeError: there is none.
        """
        own = any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        try:
            return AutoTokenizer.from_pretrained(self.folder if own else self.model_folder)
        except Exception as error:
            raise RecipeError(f"MODEL: {self.name}: its tokenizer cannot be loaded: {one_line(error, 300)}") from error

    def end_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Every token that ends a completion: the tokenizer's, and those of the generation settings.

        Raises:
            RecipeError: there is none, or the settings cannot be read.
        """
        try:
            if (self.model_folder / "generation_config.json").is_file():
                configured = GenerationConfig.from_pretrained(self.model_folder).eos_token_id
            else:
                configured = AutoConfig.from_pretrained(self.model_folder).get_text_config().eos_token_id
        except Exception as error:
            raise RecipeError(
                f"MODEL: {self.name}: its generation settings cannot be read: {one_line(error, 300)}"
            ) from error
        several = configured if isinstance(configured, list) else [configured]
        found = sorted({token for token in (*several, tokenizer.eos_token_id) if token is not None})
        if not found:
            raise RecipeError(f"MODEL: {self.name}: neither tokenizer nor model names an end-of-sequence token")
        return found


def check_there(model: str, revision: str | None = None) -> None:
    """That a model, and an adapter's base, can be found; of one on the Hub only the configuration is fetched.

    Args:
        model: Hub id or folder.
        revision: of a Hub id.

    Raises:
        RecipeError: it is not there, cannot be reached, or is an adapter that names no base.
    """
    _folders(model, revision, list(_HASHED_BESIDE_WEIGHTS))


def resolve(model: str, revision: str | None = None) -> Checkpoint:
    """Find a model or an adapter and its base, fetching what is not here.

    Args:
        model: Hub id or folder.
        revision: of a Hub id.

    Raises:
        RecipeError: it is not there, cannot be reached, holds no safetensors, or is an adapter that names no base.
    """
    folder, is_local, base = _folders(model, revision, _WANTED)
    parts = [_hash_of(part) for part in (folder, base) if part is not None]
    weights_hash = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    if is_local:
        return Checkpoint(_shown(model), "local", folder, base, weights_hash)
    return Checkpoint(model, revision or "main", folder, base, weights_hash, folder.name)  # the cache's: by commit


def _folders(model: str, revision: str | None, wanted: list[str]) -> tuple[Path, bool, Path | None]:
    """Where a model is, whether that is a folder of the user's, and where its base is if it is an adapter."""
    folder, is_local = _locate(model, revision, "MODEL", wanted)
    if is_local and revision is not None:
        raise RecipeError(f"REVISION: {_shown(model)} is a folder, and revisions are a Hub model's; leave it out")
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return folder, is_local, None
    named, of_base = _base_of(adapter, _shown(model))
    base, _ = _locate(named, of_base, f"MODEL: {_shown(model)} is an adapter; its base model", wanted)
    return folder, is_local, base


def _base_of(adapter: Path, shown: str) -> tuple[str, str | None]:
    """Name or folder, and revision, of what an adapter is an adapter of."""
    try:
        settings = _read_json(adapter)
        named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise RecipeError(
            f"MODEL: {shown}: its adapter_config.json cannot be read ({one_line(error, 200)}); save or fetch it again"
        ) from None
    if not isinstance(named, str) or not named:
        raise RecipeError(
            f"MODEL: {shown} is an adapter without a base; name base_model_name_or_path in its adapter_config.json"
        )
    return named, revision


def _locate(model: str, revision: str | None, what: str, wanted: list[str]) -> tuple[Path, bool]:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in _HASHED_BESIDE_WEIGHTS):
            raise RecipeError(
                f"{what}: {_shown(model)} is no model folder: it has no config.json or adapter_config.json"
            )
        return folder, True
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise RecipeError(f"{what}: no such folder: {_shown(model)}")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted)), False
    except GatedRepoError:
        reason = f"gated: accept its terms at https://huggingface.co/{model} and run `hf auth login`"
    except RevisionNotFoundError:
        reason = f"the Hub has it, but no revision {revision}"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "no such folder, and no model of that name on the Hub that this machine may read"
    except LocalEntryNotFoundError:
        reason = f"{_NO_FOLDER}: the Hub cannot be reached and the model is not in the cache; check the network"
    except Exception as error:  # httpx, disk, …
        reason = f"{_NO_FOLDER}: {one_line(error, 300)}"
    raise RecipeError(f"{what}: {model}: {reason}")


def _shown(model: str) -> str:
    """A name for files and tables: no home folder in it."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    folder = folder.resolve()
    if folder.is_relative_to(Path.cwd()):
        return folder.relative_to(Path.cwd()).as_posix()
    return "/".join(folder.parts[-2:])


def _hash_of(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise RecipeError(f"MODEL: {_shown(str(folder))} holds no safetensors; other formats may run code: not loaded")
    files = [*weights, *(folder / name for name in _HASHED_BESIDE_WEIGHTS if (folder / name).is_file())]
    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter's lock
        digests = pool.map(_digest, files)
        return hashlib.sha256(
            "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests)).encode()
        ).hexdigest()


def _digest(file: Path) -> str:
    content = file.resolve()
    if _SHA256.fullmatch(content.name):  # the Hub's cache names large files by their SHA-256
        return content.name
    return sha256_of(content)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
