"""Kubernetes' structural schemas, as far as our objects use them; stricter than a server, which only drops unknown fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}


def read_schema(name: str) -> dict:
    """A copy of a published CRD's schema, of `schemas/NAME.json`, which says where it is from."""
    return json.loads((Path(__file__).parent / "schemas" / f"{name}.json").read_text())["schema"]


def violations(value: object, schema: dict | bool, where: str = "") -> Iterator[str]:
    """What a value has that its schema does not allow."""
    if schema is False:
        yield f"{where}: the copy of the schema leaves this out: make it anew, with what is below"
        return
    if schema.get("x-kubernetes-int-or-string"):
        pattern = schema.get("pattern", "")
        if not isinstance(value, int | str) or (isinstance(value, str) and not re.search(pattern, value)):
            yield f"{where}: {value!r} is no quantity"
        return
    kind = schema.get("type")
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{where}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, int) and value < schema.get("minimum", value):
        yield f"{where}: {value} is too small"
    if isinstance(value, str):
        if len(value) not in range(schema.get("minLength", 0), schema.get("maxLength", len(value)) + 1):
            yield f"{where}: {value!r} is too long, or too short"
        if not re.search(schema.get("pattern", ""), value):
            yield f"{where}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            yield f"{where}: too many"
        keys = schema.get("x-kubernetes-list-map-keys")
        if keys and len({tuple(one.get(key) for key in keys) for one in value}) < len(value):
            yield f"{where}: two with the same {keys}"
        for number, one in enumerate(value):
            yield from violations(one, schema["items"], f"{where}[{number}]")
    if isinstance(value, dict):
        yield from (f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value)
        known, others = schema.get("properties"), schema.get("additionalProperties")
        for name, one in value.items():
            if known is not None and name in known:
                yield from violations(one, known[name], f"{where}.{name}")
            elif others:
                yield from violations(one, others, f"{where}.{name}")
            elif known is not None:
                yield f"{where}.{name}: there is no such field"
