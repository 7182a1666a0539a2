"""Finds oddities in the answers of a whole split: one answer nearly everywhere, classes of very unequal size."""

from __future__ import annotations

from collections.abc import Mapping

FINDINGS = {
    "answer_constant": "every row has the same suffix: the model need not look at the image",
    "answer_dominant": "more than 90 % of the rows have the same suffix: a model that always says it looks good",
    "classes_unequal": "the suffixes look like classes (at most 100, 10 rows each), one with 10 times the rows of another",
}
"""Codes of `findings` in `dataset.json`, and what each means."""

DOMINANT_SHARE = 0.9
MOST_CLASSES = 100
ROWS_OF_A_CLASS = 10
"""Suffixes count as classes, not as recurring texts, if they have at least this many rows on average."""
UNEQUAL = 10.0


def balance_findings(rows: int, suffixes: Mapping[str, int]) -> dict[str, str]:
    """Details of each oddity, by code.

    Args:
        rows: number of rows.
        suffixes: number of rows by suffix; long suffixes, and those beyond a maximum number, may be missing.
    """
    if rows < 2 * ROWS_OF_A_CLASS or not suffixes:
        return {}
    first, most = max(suffixes.items(), key=lambda item: (item[1], item[0]))
    last, least = min(suffixes.items(), key=lambda item: (item[1], item[0]))
    if most == rows:
        return {"answer_constant": f"{first!r}"}
    findings = {}
    if most > DOMINANT_SHARE * rows:
        findings["answer_dominant"] = f"{first!r} has {most} of {rows} rows"
    all_known = sum(suffixes.values()) == rows
    if all_known and len(suffixes) <= MOST_CLASSES and rows >= ROWS_OF_A_CLASS * len(suffixes) and most >= UNEQUAL * least:
        findings["classes_unequal"] = f"{first!r} has {most} rows, {last!r} {least}, of {len(suffixes)} classes"
    return findings
