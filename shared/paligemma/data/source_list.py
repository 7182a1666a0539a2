"""Names the sources of a data set: one JSONL file, or a mixture of several, each with its images and its weight.

On a command line a source is `LOCATION[,weight=W][,images=FOLDER]`. A pipeline's parameter is one text: a location, or YAML
that lists sources.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paligemma.errors import InputError, did_you_mean
from paligemma.storage.location import absolute_uri, parse_location
from paligemma.yaml_text import dump_yaml, parse_yaml

MOST_SOURCES = 1000
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
FORM = "LOCATION, LOCATION,weight=3 or LOCATION,images=FOLDER"

_KEYS = ("weight", "images")
_LIST = re.compile(r"\s*(\[|-\s)")
_OPTION = re.compile(rf",({'|'.join(_KEYS)})=")


@dataclass(frozen=True)
class Source:
    """A JSONL file of a data set.

    Attributes:
        data: its location.
        images: the folder or prefix that its image names are relative to; empty: that of all sources, or the file's folder.
        weight: its share of the training examples, relative to the other sources' weights; None: each row counts once.
    """

    data: str
    images: str = ""
    weight: float | None = None


def parse_flags(texts: Sequence[str], flag: str, weights: bool = True) -> tuple[Source, ...]:
    """The sources that a repeatable flag names.

    Args:
        texts: each value of the flag.
        flag: its name, for errors.
        weights: whether sources may have weights.

    Raises:
        InputError: a value is wrong, a source is named twice, or only some have a weight.
    """
    return _checked([_of_text(text, flag) for text in texts], flag, weights)


def parse_sources(text: str, where: object, weights: bool = True) -> tuple[Source, ...]:
    """The sources that a pipeline's parameter names: a location, or YAML that lists locations, or mappings with the keys data,
    weight and images. See `parse_flags`.
    """
    if not _LIST.match(text):
        return _checked([_of_text(text, where)], where, weights)
    listed = parse_yaml(text, where, "The list of sources")
    if not isinstance(listed, list):
        raise InputError("The sources are no list.", where=where, expected=f"a list of {FORM}, or of data, weight and images")
    return _checked([_of_value(value, where) for value in listed], where, weights)


def sources_text(sources: Sequence[Source]) -> str:
    """The text that `parse_sources` reads as these sources. One source without a weight and images is its location."""
    if tuple(sources) == (Source(sources[0].data),) and not _LIST.match(sources[0].data):
        return sources[0].data
    return dump_yaml([{key: value for key, value in _fields(source) if value not in ("", None)} for source in sources])


def short_names(locations: Sequence[str]) -> list[str]:
    """Names that tell locations apart: the last parts of their paths, as many for all as are needed; none if there is one.

    As all have equally many parts, no name is another one's beginning, and a path in one never equals a path in another. Where
    a location has too few parts, or parts such as `..`, they are numbered.
    """
    if len(locations) == 1:
        return [""]
    split = [re.sub(r"^\w+://", "", place).strip("/").split("/") for place in locations]
    for count in range(1, min(map(len, split)) + 1):
        names = ["/".join(parts[-count:]) for parts in split]
        if len(set(names)) == len(names) and not {"", ".", ".."} & {part for parts in split for part in parts[-count:]}:
            return names
    return [str(number) for number in range(1, len(locations) + 1)]


def _fields(source: Source) -> list[tuple[str, Any]]:
    return [("data", source.data), ("weight", source.weight), ("images", source.images)]


def _of_text(text: str, where: object) -> Source:
    data, *options = _OPTION.split(text)
    given = dict(zip(options[::2], options[1::2], strict=True))
    if len(given) < len(options) // 2:
        raise InputError(f"{text} has weight or images twice.", where=where, expected=FORM)
    return _source(data, given.get("images", ""), given.get("weight"), text, where)


def _of_value(value: object, where: object) -> Source:
    if isinstance(value, str):
        return _of_text(value, where)
    if not isinstance(value, dict):
        raise InputError(f"The source {value!r} is neither a text nor a mapping.", where=where, expected=FORM)
    for key in value:
        if key not in ("data", *_KEYS):
            raise InputError(f"A source has the key {key!r}.", where=where, expected=did_you_mean(str(key), ("data", *_KEYS)))
    if not isinstance(value.get("data"), str) or not isinstance(value.get("images", ""), str):
        raise InputError("A source has no data, or data or images are no texts.", where=where, expected="data: LOCATION")
    return _source(value["data"], value.get("images", ""), value.get("weight"), value["data"], where)


def _source(data: str, images: str, weight: object, text: str, where: object) -> Source:
    if not data.strip():
        raise InputError("A source has no location.", where=where, expected=FORM)
    if weight is None:
        return Source(data, images)
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not LEAST_WEIGHT <= number <= MOST_WEIGHT:
        raise InputError(
            f"The weight {weight!r} of {text} is no share.",
            where=where,
            expected=f"a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}",
            fix="leave the source out, if nothing of it is to be trained on",
        )
    return Source(data, images, number)


def _checked(sources: Sequence[Source], where: object, weights: bool) -> tuple[Source, ...]:
    if not 1 <= len(sources) <= MOST_SOURCES:
        raise InputError(f"There are {len(sources)} sources.", where=where, expected=f"1 to {MOST_SOURCES}")
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not weights:
        raise InputError(
            f"{sources[weighted.index(True)].data} has a weight, but each of these rows is looked at once.",
            where=where,
            fix="leave the weight out",
        )
    if any(weighted) and not all(weighted):
        raise InputError(
            f"{sources[weighted.index(False)].data} has no weight, but other sources have.",
            where=where,
            expected="a weight for each source, or for none",
        )
    seen: set[str] = set()
    for source in sources:
        place = absolute_uri(parse_location(source.data))
        if place in seen:
            raise InputError(f"{source.data} is named twice.", where=where, fix="name it once, with a larger weight")
        seen.add(place)
    return tuple(sources)
