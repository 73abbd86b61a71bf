r"""Is this English? By script and by function words; no model, no download.

1. Of the letters, at least 90 % are Latin or Greek (Greek letters are mathematics).
2. No other language written in Latin letters has more of its function words in the text than English: German, French,
   Spanish, Italian, Portuguese, Dutch. Words that two of the lists share count for neither.

LaTeX commands do not count. Formulae alone pass: there is nothing in them to tell a language by.
"""

from __future__ import annotations

import re
from collections import Counter

from vopd_recipes.data.rows import Problem

_FOREIGN_SHARE = 0.1
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN_OR_GREEK = re.compile(r"[A-Za-z\u00aa\u00b5\u00ba\u00c0-\u024f\u0370-\u03ff\u1e00-\u1fff\u2100-\u214f]")
_WORD = re.compile(r"[^\W\d_]{2,}")
_FUNCTION_WORDS = {
    "English": "the of and to is that for with are be this by from as at which what how if has have not let it its on "
    "find such each where all when than can there",
    "German": "der die das und ist ein eine einen den dem des mit von zu für auf im nicht sind wie wenn sei man alle",
    "French": "le la les un une des et est que pour dans avec sur par qui pas sont du au aux quel quelle soit si ou",
    "Spanish": "el la los las un una de y es que para en con por del se qué cuál cuántos sea si todos como su al",
    "Italian": "il lo la gli le un una di e è che per in con del della dei quale quanti sia se tutti come sono nel",
    "Portuguese": "o a os as um uma de e é que para em com do da dos das qual quantos seja se todos como são no na",
    "Dutch": "de het een van en is dat voor met op zijn niet hoeveel wat als alle door aan bij uit wordt die te",
}


def _owners() -> dict[str, str]:
    """Function word → the one language that has it."""
    languages = Counter(word for words in _FUNCTION_WORDS.values() for word in set(words.split()))
    return {
        word: language
        for language, words in _FUNCTION_WORDS.items()
        for word in words.split()
        if languages[word] == 1 and len(word) > 1
    }


_OWNER = _owners()


def not_english(problems: list[Problem]) -> list[str | None]:
    """For each problem `None`, or why it is taken for another language."""
    return [_foreign(problem.prompt) for problem in problems]


def _foreign(text: str) -> str | None:
    text = _COMMAND.sub(" ", text) if "\\" in text else text
    if not text.isascii():
        letters = len(_LETTER.findall(text))
        foreign = letters - len(_LATIN_OR_GREEK.findall(text))
        if foreign > _FOREIGN_SHARE * letters:
            return "other script"
    votes = Counter(owner for word in _WORD.findall(text.lower()) if (owner := _OWNER.get(word)))
    if not votes:
        return None
    likeliest, count = max(votes.items(), key=lambda vote: (vote[1], vote[0] == "English"))
    return None if count <= votes["English"] else likeliest
