"""Scores of one short answer against its references: exact match, ANLS, relaxed accuracy, multiple choice."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Whether the answer is a reference, but for white space around it."""
    return float(answer.strip() in {reference.strip() for reference in references})


def anls(answer: str, references: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity of DocVQA (arXiv 1907.00490): the best reference's; below 0.5 nothing.

    Case and runs of white space do not count as edits; as in the official script, they do count as length.
    """
    found = _single_spaced(answer)
    distances = []
    for reference in references:
        length = max(len(reference.upper()), len(answer.upper()))
        distances.append(edit_distance(_single_spaced(reference), found) / length if length else 0.0)
    similarity = 1 - min(distances)
    return similarity if similarity >= 0.5 else 0.0


def relaxed_accuracy(answer: str, references: Sequence[str]) -> float:
    """ChartQA's (arXiv 2203.10244): a number may be 5 % off; anything else, and where 0 is right, must match but for case."""
    return float(any(_relaxed_match(answer, reference) for reference in references))


def multiple_choice(answer: str, references: Sequence[str]) -> float:
    """Whether the answer names the right choice: as the reference does, or by its letter, as in `(B)`, `b.` or `B: a cat`."""
    found, wanted = _choice(answer), {_choice(reference) for reference in references}
    return float(found in wanted)


def edit_distance(left: str, right: str) -> int:
    """Fewest insertions, deletions and replacements of a character that turn one text into the other (Levenshtein)."""
    if not left or not right:
        return len(left) + len(right)
    codes = np.array([ord(character) for character in right])
    places = np.arange(len(right) + 1)
    row = places
    for number, character in enumerate(left, start=1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(character)))
        # An insertion costs one more than what is left of it: a running minimum of costs less their places.
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
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _choice(text: str) -> str:
    text = text.strip().lower()
    letter = re.match(r"\(?([a-z])(?:[).:]\s*.*|)$", text, re.DOTALL)
    return letter[1] if letter else text.rstrip(".")
