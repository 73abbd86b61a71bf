"""Is what stands around a question only an instruction? `Evaluate log 8. Give an integer.` asks what `Evaluate log 8.`
asks, but `What is 2 + 3 + 7?` asks another thing than `What is 2 + 3?`.

A judgement on words, as `words_of` gives them: no signs, few words, an opening that an instruction has, and mostly
words that instructions are made of.
"""

from __future__ import annotations

_LONGEST = 60  # words
_SIGNS = frozenset("+-*=<>")

_MADE_OF = """
a an and answer answers any as at be before below box boxed brackets by calculation can carefully choice
clearly common complete correct decimal decimals detail do each enclose enclosed end enter exact exactly
exercise explain explanation express expression final following for form format fraction full give given hash
here i if in inside integer is it its itself just last latex leave let lets letter line lowest math
mathematical mathematics must nearest need no not nothing notation number numeric numerical of on one only or
output part place places please point present problem problems provide put q question quotes radical reason
reasoning reduced remember reply report respond response return round rounded s should show simple simplest
simplified simplify single so solution solve solving standard state step steps sure task terms than that the
them then therefore think this to together two units us use using value where whole with within without work
working write you your
"""
_OPENING_AFTER = """
answer box do enclose enter explain express give leave let lets make note output please present provide put
remember reason reply report respond return round show simplify solve state think use write your you the
"""
_OPENING_BEFORE = """
answer below exercise find here let lets math please problem q question read reason respond solve task the
think work you your
"""
_VOCABULARY, _AFTER, _BEFORE = (frozenset(words.split()) for words in (_MADE_OF, _OPENING_AFTER, _OPENING_BEFORE))


def is_instruction(words: list[str], *, before: bool) -> bool:
    """Whether the words on one side of a question say only how it is to be answered; none do.

    Args:
        words: in their order.
        before: they stand before the question, not after it.
    """
    if not words:
        return True
    opens = words[0] in (_BEFORE if before else _AFTER)
    if not opens or len(words) > _LONGEST or not _SIGNS.isdisjoint(words):
        return False
    # the words of the question itself go on in its sentence: a closing word of the vocabulary, or the problem's number
    closes = not before or words[-1] in _VOCABULARY or words[-1].isdigit()
    known = sum(word in _VOCABULARY or word.isdigit() for word in words)
    return closes and 3 * known >= 2 * len(words)
