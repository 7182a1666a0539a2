"""Checks a schedule's cron expression before anything is sent: both backends report errors late, and differently."""

from __future__ import annotations

import re

from paligemma.errors import InputError

_FIELDS = (
    ("second", 0, 59, ""),
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of the month", 1, 31, ""),
    ("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    ("day of the week", 0, 6, "sun mon tue wed thu fri sat"),
)
_EXAMPLES = {"kfp": "0 0 3 * * 1", "vertex": "0 3 * * 1"}
_ZONE = re.compile(r"(CRON_)?TZ=\S+\s+")


def check_cron(backend: str, cron: str) -> None:
    """Checks a cron expression in a backend's format: with leading seconds for Kubeflow Pipelines, without for Vertex AI.

    KFP parses six fields with robfig/cron, which also knows words such as `@weekly`. Vertex AI allows a leading time zone
    (https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.schedules).

    Raises:
        InputError: names the first wrong field.
    """
    if backend == "kfp" and cron.startswith("@"):
        return
    said = _ZONE.sub("", cron, count=1) if backend == "vertex" else cron
    wanted = _FIELDS if backend == "kfp" else _FIELDS[1:]
    given = said.split()
    example = f'"{_EXAMPLES[backend]}", Mondays at three: {", ".join(name for name, *_ in wanted)}'
    if len(given) != len(wanted):
        fix = None
        if (backend, len(given)) == ("kfp", 5):
            fix = f'put the seconds in front: "0 {said}"'
        elif (backend, len(given)) == ("vertex", 6):
            fix = f'leave the seconds out: "{" ".join(given[1:])}"'
        raise InputError(f"The cron expression {cron!r} has {len(given)} fields.", where="--cron", expected=example, fix=fix)
    for text, (name, low, high, words) in zip(given, wanted, strict=True):
        if not all(_is_part(part, low, high, words.split()) for part in text.split(",")):
            raise InputError(f"{text!r} in {cron!r} is no {name}.", where="--cron", expected=example)


def _is_part(part: str, low: int, high: int, words: list[str]) -> bool:
    """Whether a part of a field is `*`, a value or a range, each with or without a step."""
    span, slash, step = part.partition("/")
    if slash and not re.fullmatch(r"[1-9][0-9]{0,2}", step):
        return False
    if span in ("*", "?"):
        return True
    values = [low + words.index(one.lower()) if one.lower() in words else one for one in span.split("-")]
    numbers = [int(one) for one in values if re.fullmatch(r"[0-9]{1,2}", str(one))]
    return len(numbers) == len(values) <= 2 and all(low <= one <= high for one in numbers) and numbers == sorted(numbers)
