"""The only reader and writer of our YAML: recipes, `--set` values, parameters files, price lists, compiled pipelines.

Plain values follow YAML 1.2's core schema (https://yaml.org/spec/1.2.2, section 10.3.2). PyYAML follows YAML 1.1, which reads
`1e-2` as text, `no` and `on` as booleans, `1:30` as 90 and `010` as 8. In addition, repeated keys are errors, and so is
everything that JSON cannot hold: dates, sets, infinities, integers beyond 64 bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import yaml

from paligemma.errors import InputError
from paligemma.foreign_json import read_bounded

MOST_BYTES = 1 << 20
"""Maximum size of a text."""
MOST_NODES = 200_000
"""Maximum number of values in a text, with aliases written out."""

_TAG = "tag:yaml.org,2002:"
_RULES = {  # in this order: the first match decides
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    # Underscores between digits come from YAML 1.1, and recipes use them.
    "int": (re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    "float": (
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
        list("-+0123456789."),
    ),
    "merge": (re.compile(r"<<"), ["<"]),
}


def parse_yaml(text: str | bytes, where: object, what: str) -> Any:
    """The value of a YAML text; None for an empty text.

    Args:
        text: bytes are UTF-8.
        where: where the text came from, for the message.
        what: what the text is, as the beginning of a sentence, e.g. `The recipe`.

    Raises:
        InputError: the text is not YAML, or violates the rules above; names the line.
    """
    documents = parse_documents(text, where, what)
    if len(documents) > 1:
        raise InputError(f"{what} cannot be read: it has {len(documents)} documents.", where=where, expected="one, without ---")
    return documents[0] if documents else None


def read_yaml(path: str | Path, what: str) -> Any:
    """The value in a YAML file; see `parse_yaml`.

    Raises:
        InputError: see `parse_yaml`; also if there is no such file.
    """
    return parse_yaml(read_yaml_text(path, what), path, what)


def read_yaml_text(path: str | Path, what: str) -> str:
    """The text in a YAML file, for `parse_yaml`.

    Raises:
        InputError: the file is missing, not a regular file, too large, or not UTF-8.
    """
    data = read_bounded(path, what, most=MOST_BYTES, error=InputError, fix="check the path")
    try:
        return _decoded(data)
    except ValueError as error:
        raise InputError(f"{what} cannot be read: {error}.", where=path, expected="YAML") from None


def parse_documents(text: str | bytes, where: object, what: str) -> list[Any]:
    """The value of each document of a YAML text; see `parse_yaml`."""
    try:
        return _documents(_decoded(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "it is not YAML"
        wrong = "is wrong" if isinstance(error, yaml.constructor.ConstructorError) else "is not YAML"
        raise InputError(f"{what} {wrong}: {problem}.", where=f"{where}{line}", expected="YAML", fix=_advice(problem)) from None
    except RecursionError:
        raise InputError(f"{what} cannot be read: it is nested too deep.", where=where, expected="YAML") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{what} cannot be read: {_in_one_line(error)}.", where=where, expected="YAML") from None


def dump_yaml(value: Any, **options: Any) -> str:
    """A value as YAML that this reader and YAML 1.1 readers parse to the same value; keys stay in order.

    Args:
        value: a value of lists, dictionaries, texts, numbers, booleans and None.
        options: options of `yaml.dump`.
    """
    return dump_documents([value], **options)


def dump_documents(values: Iterable[Any], **options: Any) -> str:
    """Each value as a document of one YAML text; see `dump_yaml`."""
    return yaml.dump_all(values, Dumper=_Dumper, **{"sort_keys": False, **options})


class _Loader(yaml.SafeLoader):
    """Loads lists, mappings, texts, numbers, booleans and null, and nothing else."""

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """A 64-bit integer, decimal unless it begins with 0o or 0x; leading zeros have no meaning."""
        text = node.value.replace("_", "")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        if len(text) > 24 or not -(1 << 63) <= (number := int(text, base)) < 1 << 63:
            raise yaml.constructor.ConstructorError(None, None, f"{_short(text)} has more than 64 bits", node.start_mark)
        return number

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """A finite number."""
        text = node.value.replace("_", "").lower()
        number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            raise yaml.constructor.ConstructorError(None, None, f"{_short(text)} is not a finite number", node.start_mark)
        return number

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        """true or false."""
        if (text := node.value.lower()) not in ("true", "false"):
            raise yaml.constructor.ConstructorError(None, None, f"{_short(text)} is not true or false", node.start_mark)
        return text == "true"

    def refuse(self, node: yaml.Node) -> None:
        """Raises an error for a tag that is not supported."""
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not taken", node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always True: writes values out instead of aliases."""
        return True


_Loader.yaml_implicit_resolvers, _Loader.yaml_constructors = {}, {}
_Dumper.yaml_implicit_resolvers = {key: list(rules) for key, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _name, (_rule, _first) in _RULES.items():
    _whole = re.compile(rf"(?:{_rule.pattern})\Z")
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", _whole, _first)
    if _name != "merge":
        for _letter in _first:
            _Dumper.yaml_implicit_resolvers.setdefault(_letter, []).append((f"{_TAG}{_name}", _whole))
for _name, _construct in {
    "null": _Loader.construct_yaml_null,
    "bool": _Loader.construct_truth,
    "int": _Loader.construct_integer,
    "float": _Loader.construct_number,
    "str": _Loader.construct_yaml_str,
    "seq": _Loader.construct_yaml_seq,
    "map": _Loader.construct_yaml_map,
}.items():
    _Loader.add_constructor(f"{_TAG}{_name}", _construct)
_Loader.yaml_constructors[None] = _Loader.refuse  # of every other tag


def _decoded(text: str | bytes) -> str:
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is UTF-16, not UTF-8; save it as UTF-8")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"it is not UTF-8 in line {line}") from None


def _documents(text: str) -> list[Any]:
    loader, values = _Loader(text), []
    try:
        while loader.check_node():
            node = cast(yaml.Node, loader.get_node())  # there is one, as `check_node` says
            if _checked_size(loader, node, {}, set()) > MOST_NODES:
                raise ValueError(f"it has more than {MOST_NODES:,} values")
            values.append(loader.construct_document(node))
    finally:
        loader.dispose()
    return values


def _checked_size(loader: _Loader, node: yaml.Node, sizes: dict[int, int], within: set[int]) -> int:
    """Number of values in a node, counting aliased values at each use. Checks that keys are unique texts or numbers.

    Called before construction, because merging (`<<`) changes the nodes.
    """
    if id(node) in within:
        raise yaml.constructor.ConstructorError(None, None, "a value holds itself", node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        within.add(id(node))
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(loader, node)
            parts = [value for _, value in node.value]
        sizes[id(node)] = 1 + sum(_checked_size(loader, part, sizes, within) for part in parts)
        within.remove(id(node))
    return sizes[id(node)]


def _check_keys(loader: _Loader, node: yaml.MappingNode) -> None:
    lines: dict = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key.start_mark)
        name = "<<" if key.tag == f"{_TAG}merge" else loader.construct_object(key)
        if name in lines:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {name!r} is there twice, first in line {lines[name] + 1}", key.start_mark
            )
        lines[name] = key.start_mark.line


def _advice(problem: str) -> str | None:
    if "'\\t'" in problem:
        return "indent with spaces: YAML takes no tabs there"
    if "mapping values are not allowed" in problem:
        return "put a text that has ': ' in it in quotes"
    if "is there twice" in problem:
        return "keep one of the two"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:24]}..."


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".")
