"""Scores a short answer against its references: exact match, ANLS, relaxed accuracy, multiple choice."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_BARE_LETTER = re.compile(r"([^\W\d_])[):]?|\(([^\W\d_])\)?[:.]?")
_LETTERED = re.compile(r"\(?([^\W\d_])(\)[.:]?|:|\.(?=\s))\s*(\S.*)")


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Whether the answer equals a reference, ignoring surrounding white space."""
    return float(answer.strip() in {reference.strip() for reference in references})


def anls(answer: str, references: Sequence[str]) -> float:
    """DocVQA's average normalized Levenshtein similarity (arXiv 1907.00490) to the best reference; 0 if below 0.5.

    Case and runs of white space do not count as edits, but do count as length, as in the official script.
    """
    found = _single_spaced(answer)
    distances = []
    for reference in references:
        length = max(len(reference.upper()), len(answer.upper()))
        distances.append(edit_distance(_single_spaced(reference), found) / length if length else 0.0)
    similarity = 1 - min(distances)
    return similarity if similarity >= 0.5 else 0.0


def relaxed_accuracy(answer: str, references: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy (arXiv 2203.10244): numbers may be 5 % off; 0 and all else must match, ignoring case."""
    return float(any(_relaxed_match(answer, reference) for reference in references))


def multiple_choice(answer: str, references: Sequence[str]) -> float:
    """Whether the answer names the same choice as a reference, ignoring case and a final full stop.

    A choice is named by its letter (`B`, `(B)`, `b.`), by its words (`a cat`), or by both (`B: a cat`, `(B) a cat`,
    `B. a cat`). The letter alone stands for the choice. If both sides have words, these must match too: `E. coli` is not
    `E. faecalis`.
    """
    found = _Choice.read(answer)
    return float(any(found.is_same(_Choice.read(reference)) for reference in references))


def edit_distance(left: str, right: str) -> int:
    """Fewest insertions, deletions and replacements of a character that turn one text into the other (Levenshtein)."""
    if not left or not right:
        return len(left) + len(right)
    codes = np.array([ord(character) for character in right])
    places = np.arange(len(right) + 1)
    row = places
    for number, character in enumerate(left, start=1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(character)))
        # An insertion costs one more than the cell to its left, so it is a running minimum of costs minus positions.
        row = np.minimum.accumulate(np.concatenate([[number], changed]) - places) + places
    return int(row[-1])


def _single_spaced(text: str) -> str:
    return " ".join(text.strip().lower().split())


def _relaxed_match(answer: str, reference: str) -> bool:
    found, wanted = _number(answer), _number(reference)
    if found is not None and wanted:
        return abs(found - wanted) / abs(wanted) <= 0.05
    return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    """A text as a finite number, else None; a label `nan` or `inf` is plain text."""
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class _Choice(NamedTuple):
    """One choice: its letter and its words, either of which may be missing.

    Attributes:
        text: the whole choice.
        marked: whether the separator after the letter can only mark a choice; a full stop may be part of a name.
    """

    text: str
    letter: str
    words: str
    marked: bool

    @classmethod
    def read(cls, text: str) -> _Choice:
        text = " ".join(text.split()).casefold().rstrip(".").rstrip()
        if bare := _BARE_LETTER.fullmatch(text):
            return cls(bare[1] or bare[2], bare[1] or bare[2], "", marked=True)
        if lettered := _LETTERED.fullmatch(text):
            return cls(text, lettered[1], lettered[3], marked=lettered[2] != ".")
        return cls(text, "", text, marked=True)

    def is_same(self, other: _Choice) -> bool:
        if self.text == other.text:
            return True
        if self.letter and other.letter:
            return self.letter == other.letter and (not self.words or not other.words or self.words == other.words)
        return bool(self.words) and self.words == other.words and self.marked and other.marked
