"""What the student wrote, each token in the colour of its advantage.

Blue is what the update made likelier, orange what it made rarer, a colour pair that colour-blind readers tell apart;
the stronger the colour, the larger |advantage|, on one scale in nats for every page. The pieces of text are the
tokens' own, decoded in their context, because a byte-level token need not be a whole character and a word-level one
loses its space when it stands alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from vopd_recipes.files import RECORDED, SCHEMA, RunError
from vopd_recipes.reporting.elements import key, section
from vopd_recipes.reporting.escaping import escaped
from vopd_recipes.reporting.runs import Group, Run

# What bounds the page: prompts, completions of each (one of every method at least), tokens, characters of a token.
PROMPTS, COMPLETIONS, TOKENS, PIECE, PROMPT_CHARACTERS = 4, 6, 400, 80, 1_200
# Shades on either side, and |advantage| in nats at which the last begins.
LEVELS, FULL = 9, 3.0
_NO_CHARACTER = "\ufffd"
_BYTES_OF_A_CHARACTER = 4


@dataclass(frozen=True)
class Written:
    """One completion: where it comes from, and its row in the parquet file."""

    group: int
    run: Run
    step: int
    row: dict[str, Any]


def choose_completions(groups: Sequence[Group]) -> list[tuple[str, list[Written]]]:
    """The prompts that most methods and steps share, each with its completions, ordered by step and then by method.

    Of those that share alike: first the one of the median |advantage|, which is how it usually is, then the ones whose
    tokens have the largest, because where the teacher agrees there is nothing to see. Late prompts come first: at the
    first step all students are the same. Of each method the first run takes part: its other seeds met the prompts in
    another order.

    Raises:
        RunError: a file of completions that is none.
    """
    places: dict[str, dict[tuple[int, int], Path]] = {}
    for index, group in enumerate(groups):
        for path in _files(group.runs[0]):
            step = int(path.stem.removeprefix("step-"))
            for prompt in _read(path, ["prompt"]).column("prompt").to_pylist():
                places.setdefault(prompt or "", {}).setdefault((index, step), path)

    def worth(prompt: str) -> tuple[int, int, int, int]:
        steps = [step for _, step in places[prompt]]
        return len({index for index, _ in places[prompt]}), len(set(steps)), max(steps) - min(steps), max(steps)

    candidates = sorted(places, key=worth, reverse=True)[: 4 * PROMPTS]
    chosen = [(prompt, _load(prompt, places[prompt], groups)) for prompt in candidates]
    chosen.sort(key=lambda one: (worth(one[0])[:2], _disagreement(one[1])), reverse=True)
    alike = sum(worth(prompt)[:2] == worth(chosen[0][0])[:2] for prompt, _ in chosen)
    typical = chosen[alike // 2 : alike // 2 + 1]
    return typical + [one for one in chosen if one not in typical][: PROMPTS - 1]


def _disagreement(written: Sequence[Written]) -> float:
    """Mean |advantage| of the tokens, in nats."""
    found = [abs(value) for each in written for value in each.row["advantage"] or [] if value is not None]
    return fmean(value for value in found if math.isfinite(value)) if any(map(math.isfinite, found)) else 0.0


def _files(run: Run) -> list[Path]:
    """A run's files of completions up to the step it is read at, oldest first."""
    found = sorted((run.folder / "completions").glob("step-????????.parquet"))
    return [path for path in found if path.stem[5:].isdecimal() and int(path.stem[5:]) <= run.step]


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns).select(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunError(f"{path}: not a file of completions ({str(error).splitlines()[0]})") from error


def _load(prompt: str, places: dict[tuple[int, int], Path], groups: Sequence[Group]) -> list[Written]:
    written = []
    for index, step in _spread(places):
        table = _read(places[index, step], SCHEMA.names)
        (row, *_) = table.filter(pc.equal(pc.fill_null(table.column("prompt"), ""), prompt)).to_pylist()
        written.append(Written(index, groups[index].runs[0], step, row))
    return written


def _spread(places: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    """Which (method, step) are shown: as many steps of every method, from its first to its last, at least the last.

    Ordered by step and then by method.
    """
    by_method: dict[int, list[int]] = {}
    for index, step in sorted(places):
        by_method.setdefault(index, []).append(step)
    count = max(1, COMPLETIONS // len(by_method))
    chosen = [(step, index) for index, steps in by_method.items() for step in _evenly(steps, count)]
    return [(index, step) for step, index in sorted(chosen)]


def _evenly(steps: Sequence[int], count: int) -> list[int]:
    """The last, and where more are asked for the first, and evenly between."""
    if count == 1 or len(steps) <= count:
        return list(steps[-count:])
    return [steps[round(place * (len(steps) - 1) / (count - 1))] for place in range(count)]


def load_tokenizer(run: Run) -> Tokenizer | None:
    """The tokenizer that the run saved; `None` where it has saved none yet.

    Raises:
        RunError: its file is none.
    """
    path = run.state_folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise RunError(f"{path}: not a tokenizer ({error})") from error


def pieces(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the one before; together they are the decoded text.

    A character that several tokens spell belongs to the last of them; the others are empty. Bytes that are no
    character become the replacement character.
    """
    texts: list[str] = []
    while (start := len(texts)) < len(token_ids):
        sizes = range(1, min(_BYTES_OF_A_CHARACTER, len(token_ids) - start) + 1)
        added = [_added(tokenizer, token_ids, start, start + size) for size in sizes]
        size = next((size for size, text in zip(sizes, added) if _NO_CHARACTER not in text), 1)
        texts += [""] * (size - 1) + [added[size - 1]]
    return texts


def _added(tokenizer: Tokenizer, token_ids: Sequence[int], start: int, end: int) -> str:
    """What tokens `start` to `end` add to the text of those right before them."""
    context = token_ids[max(0, start - _BYTES_OF_A_CHARACTER) : start]
    before, text = _decoded(tokenizer, context), _decoded(tokenizer, [*context, *token_ids[start:end]])
    return text[len(before) :] if text.startswith(before) else _decoded(tokenizer, token_ids[start:end])


def _decoded(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    return tokenizer.decode(list(token_ids), skip_special_tokens=False)


def coloured(row: dict[str, Any], tokenizer: Tokenizer | None) -> str:
    """A completion as HTML, a `<span>` for each of its first `TOKENS` tokens; without a tokenizer, its plain text."""
    token_ids = row["token_ids"] or []
    if tokenizer is None:
        return escaped(row["completion"] or "", TOKENS * 4)
    shown = pieces(tokenizer, token_ids[:TOKENS])
    spans = [_span(index, piece, row) for index, piece in enumerate(shown)]
    left_out = len(token_ids) - len(shown)
    return "".join(spans) + (f'<span class="more"> … {left_out:,} more tokens</span>' if left_out else "")


def _span(index: int, piece: str, row: dict[str, Any]) -> str:
    values = {name: _at(row[name], index) for name in (*RECORDED, "rollout_logprobs")}
    spelt = piece.replace("\n", "\\n").replace("\t", "\\t")
    label = f"“{escaped(spelt, PIECE)}”" if piece else "part of a character"
    names = {"reward": "reward", "advantage": "advantage", "reverse_kl": "reverse KL", "rollout_logprobs": "log p"}
    notes = [f"{names[name]}\t{signed(value)}" for name, value in values.items() if value is not None]
    title = "&#10;".join([label, *notes])
    text = escaped(piece, PIECE).replace("\n", "↵\n").replace("\t", "→\t") or "▫"
    return f'<span class="t{_shade(values["advantage"])}" title="{title}">{text}</span>'


def _at(values: list[float | None] | None, index: int) -> float | None:
    if not values or index >= len(values):
        return None
    value = values[index]
    return value if value is not None and math.isfinite(value) else None


def _shade(advantage: float | None) -> str:
    """The class of an advantage: ` u1` … ` u9` up, ` d1` … ` d9` down, none near nothing.

    Shades are even steps of the square root: most advantages are small and a few are large.
    """
    level = min(LEVELS, round(LEVELS * math.sqrt(abs(advantage or 0.0) / FULL)))
    return f" {'u' if (advantage or 0.0) > 0 else 'd'}{level}" if level else ""


def signed(value: float) -> str:
    """A number of nats in three decimals, with a typographic sign."""
    return f"{value:.3f}".replace("-", "−")


def completions(groups: Sequence[Group]) -> str:
    """The part of the page with what the students wrote; nothing where no run kept any."""
    chosen = choose_completions(groups)
    if not chosen:
        return ""
    tokenizers = [load_tokenizer(group.runs[0]) for group in groups]
    legend = f"<div class=scale><span>rarer</span><span class=ramp>{_ramp()}</span><span>likelier</span></div>"
    titles = ["A typical prompt", *(f"Among the worst: {place}" for place in range(1, len(chosen)))]
    parts = [_prompt(groups, title, prompt, written, tokenizers) for title, (prompt, written) in zip(titles, chosen)]
    note = (
        "What the student wrote while it trained, each token in the colour of its advantage in nats: "
        "<span class='t u6'>blue</span> was made likelier, <span class='t d6'>orange</span> rarer. "
        "Hover over a token for its reward, advantage and reverse KL. Of the prompts that the runs share: the one in "
        "the middle by how much student and teacher differ, then those on which they differ most."
    )
    return section("Completions", note, legend + "".join(parts))


def _ramp() -> str:
    """The shades from rarer to likelier, each labelled with the advantage in its middle where there is room."""
    swatches = []
    for level in range(-LEVELS, LEVELS + 1):
        advantage = FULL * (level / LEVELS) ** 2 * (1 if level > 0 else -1)
        label = f"{advantage:+.2g}".replace("-", "−") if level else "0"
        name = f"{'u' if level > 0 else 'd'}{abs(level)}" if level else ""
        swatches.append(f'<i class="{name}">{label if level % 3 == 0 else ""}</i>')
    return "".join(swatches)


def _prompt(
    groups: Sequence[Group],
    title: str,
    prompt: str,
    written: Sequence[Written],
    tokenizers: Sequence[Tokenizer | None],
) -> str:
    methods = len({each.group for each in written})  # side by side; of a single one, steps are
    columns = min(3, methods) if methods > 1 else min(2, len(written))
    cards = "".join(_completion(groups, each, tokenizers[each.group]) for each in written)
    return (
        f"<article class=prompt><h3>{title}</h3><pre class=text>{escaped(prompt.rstrip(), PROMPT_CHARACTERS)}</pre>"
        f'<div class="columns columns{columns}">{cards}</div></article>'
    )


def _completion(groups: Sequence[Group], each: Written, tokenizer: Tokenizer | None) -> str:
    row = each.row
    length = len(row["token_ids"] or [])
    facts = [f"{length:,} tokens", "ended" if row["finished"] else "truncated"]
    means = [value for value in row["reverse_kl"] or [] if value is not None]
    facts.append(f"reverse KL {fmean(means):.3f}" if means else "not trained on")
    return (
        f"<div class=completion><p class=whose>{key(each.group)}<b>{escaped(groups[each.group].label)}</b> "
        f"step {each.step:,} <span class=muted>{' · '.join(facts)}</span></p>"
        f"<div class=text>{coloured(row, tokenizer)}</div></div>"
    )
