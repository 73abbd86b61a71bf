r"""Is this English? By script and by function words; no model, no download.

1. Of the letters, at least 90 % are Latin or Greek (Greek letters are mathematics), mathematical alphabets, ligatures
   and full-width letters taken for the plain letters that they are.
2. No other language written in Latin letters has more of its function words in the text than English: German, French,
   Spanish, Italian, Portuguese, Dutch. A word of several languages counts for each of them. Foreign words that are
   also English words or terms (`per`, `man`, `die`, `come`) are not in the lists; acronyms do not count (`MIT`), nor
   do articles and prepositions in names (`Los Angeles`, `Van Gogh`).

LaTeX commands and addresses do not count. Formulae alone pass: there is nothing in them to tell a language by.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from vopd_recipes.data.rows import Problem
from vopd_recipes.data.typesetting import nfkc

_FOREIGN_SHARE = 0.1
_NO_WORDS = re.compile(r"\\[A-Za-z]+|https?://\S+")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN_OR_GREEK = re.compile(r"[A-Za-z\u00aa\u00b5\u00ba\u00c0-\u024f\u0370-\u03ff\u1e00-\u1fff\u2100-\u214f]")
_WORD = re.compile(r"[^\W\d_]{2,}")
_ENGLISH = (
    "the of and to is that for with are be this by from at as which what how if has have had not let it its on in "
    "an or no yes do does did was were will would can could may must should so we us he she they them their his "
    "her you your my me find such each every where who whose when than then there these those all any some many "
    "much more most other another into between about after before until over under per only also both either one "
    "two three first answer given show prove compute evaluate solve simplify write express"
)
_FOREIGN = {
    "German": "der das und ist ein eine einen einem einer dem des mit von zu zum zur für auf im in an nicht sind "
    "wie viele wenn sei so was alle welche wird werden sich auch kann als aus bei nach oder dass "
    "berechne berechnen bestimme bestimmen finde löse zeige beweise gegeben",
    "French": "le la les un une des de et est que dans avec sur qui pas sont du aux quel quelle soit si ou ce "
    "cette il elle on en nous vous combien lorsque tels tous tout leur ses deux calculer calculez "
    "trouver trouvez déterminer déterminez résoudre montrer montrez",
    "Spanish": "el la los las un una de y es que en por del cuál cuáles qué cuántos cuántas como todos todas esta "
    "este no lo le más tiene cada cuando entre dos donde calcula calcule calcular encuentra encuentre "
    "encontrar halla halle hallar",
    "Italian": "il lo la gli le un una uno del della dei delle degli nel nella che con in quale quali quanti "
    "quante sia tutti tutte sono più ogni questo questa dal dalla dall dell nell all per calcola calcolare "
    "trova trovare determina",
    "Portuguese": "os as um uma de que no na não das dos qual quais quantos quantas seja todos todas são por mais "
    "cada tem onde quando entre ao pelo pela foi calcule calcular encontre encontrar",
    "Dutch": "de het een van en is dat voor op zijn niet hoeveel wat als alle aan bij uit wordt te in of er deze "
    "dit naar was heeft worden welke geen twee kan bereken bepaal vind",
}
_IN_NAMES = frozenset(
    ["la", "las", "los", "el", "le", "les", "de", "del", "der", "das", "des", "du", "da", "dos", "van"]
)


def _owners() -> dict[str, tuple[str, ...]]:
    """Function word → the languages that have it."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for language, words in (("English", _ENGLISH), *_FOREIGN.items()):
        for word in dict.fromkeys(words.split()):
            found[word].append(language)
    return {word: tuple(languages) for word, languages in found.items()}


_OWNERS = _owners()


def not_english(problems: list[Problem]) -> list[str | None]:
    """For each problem `None`, or why it is taken for another language."""
    return [_foreign(problem.prompt) for problem in problems]


def _foreign(text: str) -> str | None:
    text = _NO_WORDS.sub(" ", text) if "\\" in text or "://" in text else text
    if not text.isascii():
        text = nfkc(text)
        letters = len(_LETTER.findall(text))
        foreign = letters - len(_LATIN_OR_GREEK.findall(text))
        if foreign > _FOREIGN_SHARE * letters:
            return "other script"
    votes = _votes(text.lower() if text.isupper() else text)
    if not votes:
        return None
    likeliest, count = max(votes.items(), key=lambda vote: (vote[1], vote[0] == "English"))
    return None if count <= votes["English"] else likeliest


def _votes(text: str) -> Counter[str]:
    """Language → its function words in the text."""
    votes: Counter[str] = Counter()
    for word, times in Counter(_WORD.findall(text)).items():
        lowered = word.lower()
        if word == lowered or not (word.isupper() or lowered in _IN_NAMES):
            for language in _OWNERS.get(lowered, ()):
                votes[language] += times
    return votes
