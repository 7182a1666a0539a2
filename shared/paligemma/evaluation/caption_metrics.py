"""BLEU, ROUGE-L and CIDEr of captions, as in the COCO caption evaluation.

Equal to pycocoevalcap on the same words. That takes its words from the Stanford PTB tokenizer, a Java program. `words` follows
its rules as far as captions need them: it drops case and punctuation, and splits off clitics and signs ($, %, &). It does not
know that tokenizer's list of abbreviations, and does not spell brackets as words.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LONGEST = 4
"""Length of the longest n-grams, in words."""

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))(?!\w)")
_SIGNS = "$%&#@*\\"
"""ASCII punctuation that the tokenizer keeps; also `+<=>^|~`, which Unicode counts as symbols."""
_SMALL, _TINY = 1e-9, 1e-15

Words = list[str]


class Caption(NamedTuple):
    """One answer and its references, as words."""

    answer: Words
    references: list[Words]


def words(text: str) -> Words:
    """The words of a caption."""
    spaced = _CLITIC.sub(r" \1", text.lower().replace("’", "'"))
    return [word for word in _word_pattern().findall(spaced) if any(_counts(character) for character in word)]


def _counts(character: str) -> bool:
    """Whether a word with this character is more than punctuation. The tokenizer drops symbols beyond 16-bit characters."""
    symbol = unicodedata.category(character)[0] == "S" and character != "`" and ord(character) < 0x10000
    return character.isalnum() or character in _SIGNS or symbol


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """The pattern of a word. It includes combining vowel signs and accents, unlike Python's `\\w`."""
    marks = "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M")
    letters = rf"[\w{marks}\u200c\u200d]+"
    return re.compile(
        r"n't(?!\w)|'(?:s|m|d|ll|re|ve)(?!\w)|(?:[^\W\d_]\.){2,}(?!\w)"
        rf"|{letters}(?:[-.'’/&]{letters}|(?<=\d)[,:](?=\d){letters})*|[^\w\s]"
    )


def bleu_counts(caption: Caption) -> np.ndarray:
    """The counts that BLEU sums over a corpus: words, closest reference's words, matches and n-grams of each length."""
    length = len(caption.answer)
    closest = min((abs(len(reference) - length), len(reference)) for reference in caption.references)[1]
    counts, most = ngrams(caption.answer), Counter()
    for reference in caption.references:
        most |= ngrams(reference)
    matched = np.zeros(LONGEST)
    for ngram, count in (counts & most).items():
        matched[len(ngram) - 1] += count
    return np.concatenate([[length, closest], matched, np.maximum(0, length - np.arange(LONGEST))])


def bleu_of(counts: np.ndarray) -> float:
    """BLEU-4 from summed `bleu_counts`, or from one caption's counts."""
    length, reference_length = counts[:2]
    matched, total = counts[2 : 2 + LONGEST], counts[2 + LONGEST :]
    precision = np.prod((matched + _TINY) / (total + _SMALL)) ** (1 / LONGEST)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    return float(precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1))


def rouge_l(caption: Caption) -> float:
    """F-measure (beta 1.2) of the longest common subsequence, from the best precision and best recall of any reference.

    An answer without words is right if a reference has none either.
    """
    if not caption.answer:
        return float([] in caption.references)
    common = [_longest_common(caption.answer, reference) for reference in caption.references]
    precision = max(common) / len(caption.answer)
    recall = max(c / len(reference) if reference else 0.0 for c, reference in zip(common, caption.references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def cider(captions: Sequence[Caption]) -> np.ndarray:
    """CIDEr-D (arXiv 1411.5726) of every caption, 0 to 10; rare n-grams are those rare in the corpus's references.

    An n-gram that is in all rows' references has weight 0. So with one row, or with equal references everywhere, even a perfect
    answer scores 0. To reach 10, an answer must have the same words as every reference of its row, at least four.
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        frequency.update(set().union(*(ngrams(reference) for reference in caption.references)))
    log_number = math.log(len(captions)) if captions else 0.0

    def weigh(text: Words) -> tuple[list[dict[tuple[str, ...], float]], np.ndarray, int]:
        """For each n-gram length, the weights and their norm; and the number of word pairs, the official code's length."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        for ngram, count in ngrams(text).items():
            vectors[len(ngram) - 1][ngram] = count * (log_number - math.log(max(1, frequency[ngram])))
        norms = np.array([math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors])
        return vectors, norms, max(0, len(text) - 1)

    scores = np.zeros(len(captions))
    for place, caption in enumerate(captions):
        found, found_norms, found_length = weigh(caption.answer)
        for reference in caption.references:
            wanted, wanted_norms, wanted_length = weigh(reference)
            likeness = np.array(
                [
                    sum(min(weight, b.get(ngram, 0.0)) * b.get(ngram, 0.0) for ngram, weight in a.items())
                    for a, b in zip(found, wanted, strict=True)
                ],
                np.float64,  # for captions without words, the sums are Python's integer 0
            )
            norms = found_norms * wanted_norms
            likeness = np.divide(likeness, norms, out=likeness, where=norms != 0)
            scores[place] += likeness.mean() * math.exp(-((found_length - wanted_length) ** 2) / (2 * 6.0**2))
        scores[place] *= 10 / len(caption.references)
    return scores


def ngrams(text: Words) -> Counter[tuple[str, ...]]:
    """Every run of one to four words, and its count."""
    return Counter(tuple(text[start : start + n]) for n in range(1, LONGEST + 1) for start in range(len(text) - n + 1))


def _longest_common(left: Words, right: Words) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, start=1):
            diagonal, lengths[place] = (
                lengths[place],
                diagonal + 1 if word == other else max(lengths[place], lengths[place - 1]),
            )
    return lengths[-1]
