"""Replaces class numbers by names: ClassLabel of Hugging Face data sets, with names in a Parquet file's metadata.

`datasets` writes its features as JSON under the key `huggingface` of the Arrow schema: {"info": {"features": ...}}
(huggingface/datasets, src/datasets/arrow_writer.py and features/features.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paligemma.data.convert.outcomes import EntryError, shown
from paligemma.errors import DamagedError
from paligemma.foreign_json import parse_json


def named_labels(metadata: Mapping[bytes, bytes] | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that replaces class numbers by names in a row.

    It replaces every column, or part of one, that the metadata declare a ClassLabel. The number -1 stands for a row without a
    label, and becomes None.
    """
    try:
        said = (metadata or {}).get(b"huggingface", b"{}")
        features = parse_json(said, "the table's metadata", "The description of the columns")["info"]["features"]
    except (DamagedError, KeyError, TypeError):
        features = None
    if not isinstance(features, dict):
        return lambda row: row
    return lambda row: {column: _named(value, features.get(column)) for column, value in row.items()}


def _named(value: Any, feature: Any) -> Any:
    """Converts a value according to its feature.

    Raises:
        EntryError: a number is not a class's number.
    """
    if isinstance(feature, list):  # the first format for lists
        return [_named(item, feature[0]) for item in value] if feature and isinstance(value, list) else value
    if not isinstance(feature, dict):
        return value
    kind = feature.get("_type")
    if kind == "ClassLabel":
        return _name(value, feature.get("names"))
    if kind in ("Sequence", "List", "LargeList"):
        inner = feature.get("feature")
        if isinstance(value, dict) and isinstance(inner, dict):  # a list of structs is stored as a struct of lists
            return {key: _named(item, [inner.get(key)]) for key, item in value.items()}
        return [_named(item, inner) for item in value] if isinstance(value, list) else value
    if not isinstance(kind, str) and isinstance(value, dict):  # a struct
        return {key: _named(item, feature.get(key)) for key, item in value.items()}
    return value


def _name(value: Any, names: Any) -> Any:
    if isinstance(names, dict):  # the format in the YAML of a data set's page
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or isinstance(value, bool) or not isinstance(value, int):
        return value
    if value == -1:
        return None
    if not 0 <= value < len(names) or not isinstance(names[value], str):
        raise EntryError("label_unknown", f"the label is {shown(value)}, of {len(names)} classes")
    return names[value]
