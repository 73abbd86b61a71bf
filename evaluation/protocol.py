"""How answers are drawn: temperature, truncation, length, samples per question, template.

A protocol is a YAML file in `evaluation/protocols`; a results file carries its name and every setting, because numbers
drawn under two protocols are two measurements. What the command line changes becomes part of the name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from vopd_recipes.recipe import RecipeError, nearest

_FOLDER = Path(__file__).parent / "protocols"


@dataclass(frozen=True)
class Drawing:
    """How one completion is drawn.

    Args:
        temperature: above 0.
        top_p: share of the probability that is kept; 1 keeps all.
        top_k: number of tokens that are kept; 0 keeps all.
        max_new_tokens: after which a completion is truncated.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


@dataclass(frozen=True)
class Protocol:
    """How every task's answers are drawn.

    Args:
        name: the file's, with what was changed: `paper+max_new_tokens=512`.
        chat_template: prompts go through the tokenizer's chat template; else raw.
        thinking: what the template gets as `enable_thinking`.
        math: for mathematics.
        choice: for multiple choice.
        samples: task → completions per question; `default` for the rest.
    """

    name: str
    chat_template: bool
    thinking: bool
    math: Drawing
    choice: Drawing
    samples: dict[str, int]

    def drawing(self, kind: str, longest: int | None) -> Drawing:
        """For a kind of task (`math` or `choice`) whose completions need no more than `longest` tokens."""
        drawing: Drawing = getattr(self, kind)
        if longest is None or longest >= drawing.max_new_tokens:
            return drawing
        return replace(drawing, max_new_tokens=longest)

    def samples_of(self, task: str) -> int:
        """Completions per question."""
        return self.samples.get(task, self.samples["default"])


def protocol_names() -> list[str]:
    """Every protocol there is."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_protocol(
    name: str,
    *,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    chat_template: bool | None = None,
    thinking: bool | None = None,
) -> Protocol:
    """Read a protocol and change what is given.

    Raises:
        RecipeError: no such protocol, or a value that no completion can be drawn with.
    """
    if name not in protocol_names():
        known = ", ".join(protocol_names())
        raise RecipeError(f"PROTOCOL: no protocol '{name}'{nearest(name, protocol_names())} (there are: {known})")
    for field, value in (("SAMPLES", samples), ("MAX_NEW_TOKENS", max_new_tokens)):
        if value is not None and value < 1:
            raise RecipeError(f"{field}: {value} is not a number of {field.lower().rpartition('_')[2]} above 0")
    read = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    label = [name]
    for field, value in (("chat_template", chat_template), ("thinking", thinking)):
        if value is not None and value != read[field]:
            read[field] = value
            label.append(f"{field}={str(value).lower()}")
    if thinking and read["thinking"]:  # what its makers advise for the mode that was asked for
        for kind in ("math", "choice"):
            read[kind] |= read.get("when_thinking", {})
    if read["thinking"] and not read["chat_template"]:
        raise RecipeError("THINKING: only a chat template knows about thinking; set CHAT_TEMPLATE=1 as well")
    if max_new_tokens is not None and any(
        read[kind]["max_new_tokens"] != max_new_tokens for kind in ("math", "choice")
    ):
        label.append(f"max_new_tokens={max_new_tokens}")
    changed = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    drawings = {kind: Drawing(**(read[kind] | changed)) for kind in ("math", "choice")}
    counts = {"default": samples} if samples is not None else read["samples"]
    return Protocol("+".join(label), read["chat_template"], read["thinking"], **drawings, samples=counts)
