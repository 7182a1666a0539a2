"""The right answers of a row, in the spellings of data sets: a text, a list of texts, or a list of objects with an `answer`."""

from __future__ import annotations

from paligemma.data.convert.names import text_of
from paligemma.data.convert.outcomes import Entry, EntryError, Tally, shown


def usable_answers(given: object, entry: Entry, tally: Tally, only: str = "") -> list[str]:
    """The texts of some answers; `only` if there are none.

    Raises:
        EntryError: there are none.
    """
    texts = _texts(given)
    usable = [text for text in texts if text is not None and text.strip()]
    if not usable and not only.strip():
        raise EntryError("answer_missing", f"answers is {shown(given)}")
    if len(usable) < len(texts):
        tally.note("answer_dropped", entry.place, len(texts) - len(usable))
    return usable or [only]


def _texts(value: object) -> list[str | None]:
    """The texts of an answer, or of a list of answers or of objects with an `answer`; None for what is no text."""
    given = value if isinstance(value, list) else [] if value is None else [value]
    return [text_of(answer.get("answer") if isinstance(answer, dict) else answer) for answer in given]
