"""Make a student out of its teacher without some layers: `python scripts/prune_layers.py TEACHER OUT --drop 10,15,20`.

The tokenizer stays, so that the two can be compared token by token.
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vopd_recipes.files import check_writable, written_whole
from vopd_recipes.recipe import RecipeError, one_line, one_line_errors


def load(name: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in the type that it is stored in, and its tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        return AutoModelForCausalLM.from_pretrained(name, revision=revision, use_safetensors=True), tokenizer
    except Exception as error:  # loaders raise what they like; each becomes one line
        raise RecipeError(f"cannot load {name}: {one_line(error, 600)}") from error


def drop_layers(model: PreTrainedModel, dropped: set[int]) -> None:
    """Remove decoder layers and number the rest anew, in the modules and in the configuration."""
    layers = model.base_model.layers
    missing = sorted(index for index in dropped if not 0 <= index < len(layers))
    if missing or len(dropped) == len(layers):
        sys.exit(
            f"error: --drop: the model has layers 0 to {len(layers) - 1} and must keep one; got {sorted(dropped)}"
        )
    kept = [index for index in range(len(layers)) if index not in dropped]
    model.base_model.layers = type(layers)(layers[index] for index in kept)
    for index, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="Hub id or folder")
    parser.add_argument("folder", type=Path, help="where the student goes")
    parser.add_argument("--drop", required=True, help="layer numbers, e.g. 10,15,20")
    parser.add_argument("--revision", help="branch, tag or commit of the teacher")
    words = parser.parse_args()
    if words.folder.exists():
        sys.exit(f"error: {words.folder} exists; remove it or name another folder")
    if not all(word.strip().isdigit() for word in words.drop.split(",")):
        sys.exit(f"error: --drop: expected layer numbers such as 10,15,20, got {words.drop!r}")
    check_writable(words.folder.parent, "folder")
    model, tokenizer = load(words.teacher, words.revision)
    drop_layers(model, {int(word) for word in words.drop.split(",")})
    with written_whole(words.folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    print(f"{words.folder}: {model.config.num_hidden_layers} layers, {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
