"""Text from anywhere becomes text in a page: nothing in it is markup, and nothing in it is invisible.

A completion may hold anything a tokenizer can spell: tags, NUL, overrides of the writing direction. Characters that a
reader cannot see, or that act on their neighbours, are spelt out; all others stay, right-to-left text too, which
the page isolates.
"""

from __future__ import annotations

import html
import re

# Controls (tab and newline stay), direction marks and overrides, zero-width characters (the joiners of emoji and of
# Persian stay), line separators, tags, surrogates and non-characters, which UTF-8 or HTML cannot hold.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """`text` with every invisible character spelt out: NUL is ␀, an override of the direction is ⟨U+202E⟩."""
    return _INVISIBLE.sub(_spelt, text)


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def escaped(value: object, limit: int = 200) -> str:
    """A value as HTML text or attribute, of at most `limit` characters before escaping."""
    text = str(value)
    return html.escape(visible(text if len(text) <= limit else text[:limit] + "…"))
