"""Keeps a run's fingerprint beside its state, so that no other run resumes from it by mistake."""

from __future__ import annotations

import json
from collections.abc import Mapping

from paligemma.errors import InputError
from paligemma.foreign_json import parse_json
from paligemma.json_leaves import leaves
from paligemma.storage import folders
from paligemma.storage.files import write_new_file
from paligemma.storage.location import Location

FINGERPRINT_FILE = "fingerprint.json"

_LINES = 20
_ABSENT = object()


def claim(location: Location, fingerprint: Mapping[str, object], *, write: bool) -> None:
    """Makes sure that the state at `location` belongs to the run with this fingerprint.

    Args:
        location: where the state is, or will be.
        fingerprint: JSON values that determine the run.
        write: whether to write a missing fingerprint; if False, a missing fingerprint is accepted.

    Raises:
        InputError: the state has another fingerprint (the message has the differences), or the location holds something else.
        DamagedError: the stored fingerprint cannot be read.
    """
    path = location / FINGERPRINT_FILE
    if (data := folders.read_file(path)) is None and write:
        if any(not name.startswith(".") for name in folders.list_files(location)):
            raise InputError(
                f"{location} holds files that are not a training state of this program.",
                expected="an unused folder or prefix",
                fix="choose another --state, or remove them yourself",
            )
        if not write_new_file(path, json.dumps(fingerprint, indent=1).encode()):  # another process wrote it first
            data = folders.read_file(path)
    if data is None:
        return
    before = parse_json(data, path, "The fingerprint of a training state", fix="choose another --state")
    changes = describe_changes(before, json.loads(json.dumps(fingerprint)))
    if changes:
        raise InputError(
            "The saved training state is of another run:\n" + "\n".join(f"  {change}" for change in changes),
            where=location,
            expected="the recipe, data and checkpoint that the run began with",
            fix="put these values back to go on, or choose another --state to begin anew",
        )


def saved_recipe(location: Location) -> Mapping[str, object]:
    """The values of the recipe that the state at `location` belongs to; empty without a state.

    Raises:
        DamagedError: the stored fingerprint cannot be read.
    """
    path = location / FINGERPRINT_FILE
    if (data := folders.read_file(path)) is None:
        return {}
    found = parse_json(data, path, "The fingerprint of a training state", fix="choose another --state").get("recipe")
    return found if isinstance(found, dict) else {}


def describe_changes(before: object, after: object) -> list[str]:
    """The differences of two JSON values: at most 20 lines like `recipe.learning_rate: 0.03 -> 0.01`; empty if equal."""
    old, new = dict(leaves(before)), dict(leaves(after))
    lines = [
        f"{path}: {_shown(old.get(path, _ABSENT))} -> {_shown(new.get(path, _ABSENT))}"
        for path in {**old, **new}
        if old.get(path, _ABSENT) != new.get(path, _ABSENT)
    ]
    return lines if len(lines) <= _LINES else [*lines[:_LINES], f"and {len(lines) - _LINES} more"]


def _shown(value: object) -> str:
    return "(absent)" if value is _ABSENT else json.dumps(value)
