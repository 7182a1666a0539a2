"""Selects trained parameters: named sets, patterns of names, and a table of the result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from flax import nnx
from rich.table import Table

from paligemma.errors import InputError, did_you_mean
from paligemma.models.lora_factors import is_adapter
from paligemma.models.paligemma import PaliGemma

TRAINABLE_SETS = {
    "attention": r"llm/layers/attn/(?!lora_).*",
    "llm": r"llm/(?!.*/lora_).*",
    "vision": r"img/.*",
    "all": r"(?!.*/lora_).*",
    "lora": r".*/lora_\w+/[ab]",
}
"""Named sets of parameters, as patterns that match whole names."""


def compile_pattern(trainable: str | tuple[str, ...]) -> re.Pattern[str]:
    """The pattern that matches a trainable parameter's whole name.

    Args:
        trainable: name of a set, or patterns, any of which may match.

    Raises:
        ValueError: the set is unknown, or a pattern is not a regular expression.
    """
    if isinstance(trainable, str):
        if trainable not in TRAINABLE_SETS:
            raise ValueError(f"there is no set {trainable!r}, {did_you_mean(trainable, TRAINABLE_SETS)}, or a list of patterns")
        return re.compile(TRAINABLE_SETS[trainable])
    try:
        return re.compile("|".join(f"(?:{re.compile(pattern).pattern})" for pattern in trainable))
    except re.error as error:
        raise ValueError(f"{error.pattern!r} is not a regular expression: {error}") from None


def is_trainable(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a parameter of this name is trained."""
    return pattern.fullmatch(name) is not None


def split_trainable(model: PaliGemma, pattern: re.Pattern[str]) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The network's structure, its trainable parameters and its frozen ones.

    Raises:
        InputError: nothing is trainable.
    """
    graph, trainable, frozen = nnx.split(model, lambda path, _: is_trainable(pattern, "/".join(map(str, path))), ...)
    if not nnx.to_flat_state(trainable):
        names = sorted("/".join(map(str, path)) for path, _ in nnx.to_flat_state(frozen))
        raise InputError(
            f"No parameter's name matches {pattern.pattern!r}: nothing would be trained.",
            expected=f"a pattern of whole names; {did_you_mean(pattern.pattern, names)}",
        )
    return graph, trainable, frozen


@dataclass(frozen=True)
class Group:
    """A group of similar parameters: their number of elements, and their bytes on all devices together."""

    name: str
    trained: bool
    dtype: str
    parameters: int
    bytes: int


def parameter_groups(variables: Mapping[str, nnx.Variable], pattern: re.Pattern[str]) -> list[Group]:
    """The parameters by part of the network (adapters apart) and by whether they are trained."""
    groups: dict[tuple, Group] = {}
    for name, variable in variables.items():
        value = variable.get_value()
        parts = name.split("/")
        part = "/".join(parts[:3] if parts[:2] == ["llm", "layers"] else parts[: 1 if parts[0] == "img" else 2])
        key = (part + ("/lora" if is_adapter(name) else ""), is_trainable(pattern, name), str(value.dtype))
        old = groups.get(key, Group(*key, 0, 0))
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(value))
        groups[key] = Group(*key, old.parameters + value.size, old.bytes + held)
    return list(groups.values())


def groups_table(groups: list[Group]) -> Table:
    """The groups as a table for people, with sums of trained and frozen parameters."""
    table = Table(title="Parameters")
    for column in ("part", "trained", "dtype", "parameters", "MiB"):
        table.add_column(column, justify="left" if column in ("part", "trained", "dtype") else "right")
    for group in sorted(groups, key=lambda group: (not group.trained, group.name)):
        table.add_row(*_cells(group))
    table.add_section()
    for trained in (True, False):
        same = [group for group in groups if group.trained == trained]
        total = Group("all", trained, "", sum(group.parameters for group in same), sum(group.bytes for group in same))
        table.add_row(*_cells(total))
    return table


def _cells(group: Group) -> tuple[str, ...]:
    return group.name, "yes" if group.trained else "", group.dtype, f"{group.parameters:,}", f"{group.bytes / 2**20:,.1f}"
