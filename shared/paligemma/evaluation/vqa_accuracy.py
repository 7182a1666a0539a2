"""visualqa.org's accuracy of open-ended answers, against the answers of several people.

With ten references or more, results equal the official evaluation code to the last digit, with its quirks. It leaves out one
reference at a time. It does not normalize references that all agree, and only the punctuation of others. Of an answer, it also
normalizes articles, number words and contractions. Data sets with ten references have answers in the form that this code
expects.

With fewer references, as users write them, both sides are normalized, and the share of people who gave the answer counts. By
the paper (arXiv 1505.00468, section 4), an answer is right if at least three of ten people gave it: a share of 0.3.
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
"""Maps contractions without an apostrophe to their spelling; one exception comes from the official table."""

_UP_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(n) for n, word in enumerate(_UP_TO_TEN)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = int(re.UNICODE)
"""The official code passes a flag where Python expects a count of replacements."""


OFFICIAL_REFERENCES = 10
"""Number of answers per question for which the official code was written."""

_RIGHT_SHARE = 0.3


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The accuracy of an answer, 0 to 1.

    With ten references or more: the mean, over each reference left out, of min(1, matches among the others / 3). With fewer:
    min(1, share of references that match / 0.3), so that one of three suffices, and one of five is worth 2/3.
    """
    if len(references) < OFFICIAL_REFERENCES:
        found = normalize_answer(answer)
        share = sum(normalize_answer(reference) == found for reference in references) / len(references)
        return min(1.0, share / _RIGHT_SHARE)
    answer = _normalize_words(_strip_punctuation(_one_line(answer)))
    if len(set(references)) > 1:
        references = [_strip_punctuation(reference) for reference in references]
    matches = [reference == answer for reference in references]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def normalize_answer(text: str) -> str:
    """Normalizes a text as the official code does an answer. Only lowers the case if nothing else would be left ("A", "?!")."""
    line = _one_line(text)
    return _normalize_words(_strip_punctuation(line)) or " ".join(line.lower().split())


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    """Replaces punctuation by a space; removes it at the edge of a word, or if any number has a comma."""
    stripped = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if at_edge or _COMMA_IN_NUMBER.search(text) else " ")
    return _FULL_STOP.sub("", stripped, count=_MOST_FULL_STOPS)


def _normalize_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
