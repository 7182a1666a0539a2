"""Accuracy of open-ended answers as visualqa.org counts it: against the answers of several people, leaving out one at a time.

Checked against the official evaluation code, with its quirks: of references that all agree nothing is normalized, of others
only the punctuation; of an answer also articles, number words and contractions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_FORMS = """
'ow's'at 'twas I'd've I'm I've ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd
you'd've you'll you're you've
"""
_CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in _FORMS.split()
    for place, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}
"""What a contraction is without one of its apostrophes, and the contraction; one exception is the official table's own."""

_UP_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(n) for n, word in enumerate(_UP_TO_TEN)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = int(re.UNICODE)
"""The official code passes a flag where Python expects a count."""


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Mean, over leaving out each reference, of min(1, matches among the others / 3). A single reference must be matched."""
    answer = _normalize_words(_strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))
    if len(set(references)) > 1:
        references = [_strip_punctuation(reference) for reference in references]
    matches = [reference == answer for reference in references]
    if len(matches) == 1:
        return float(matches[0])
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def _strip_punctuation(text: str) -> str:
    """Punctuation becomes a space; nothing, where it stands at the edge of a word or any number has a comma."""
    stripped = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if at_edge or _COMMA_IN_NUMBER.search(text) else " ")
    return _FULL_STOP.sub("", stripped, count=_MOST_FULL_STOPS)


def _normalize_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
