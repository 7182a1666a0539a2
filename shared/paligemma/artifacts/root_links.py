"""Links between roots: when steps of one chain write records below several roots, each root names the others.

ROOT/lineage/roots/SHA256.json   another root with records of the same chains; named by the hash of its location

Such a file only says where else to look. It is not signed. Answers say which roots were read, and which were not.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict

from paligemma.artifacts.record import RECORD_FILE, Input, Record, parse_record
from paligemma.artifacts.recording import FOLDER, ROOTS_FOLDER, Attempt
from paligemma.errors import DamagedError, PaliGemmaError
from paligemma.foreign_json import parse_model
from paligemma.safe_names import Address
from paligemma.storage.files import exists, write_new_file
from paligemma.storage.folders import list_files, read_file
from paligemma.storage.location import Location, absolute_uri, follow, parse_location, relative_way

log = logging.getLogger("paligemma.lineage")


class RootLink(BaseModel):
    """Names another root.

    Attributes:
        root: the other root's address when the link was written.
        relative: the path from this root to the other, which still holds when both move together; None between a disk and Cloud
            Storage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    root: Address
    relative: str | None = None

    def render(self) -> bytes:
        """The link as the bytes of its file."""
        return (json.dumps(self.model_dump(), indent=2) + "\n").encode()

    @property
    def name(self) -> str:
        """Its file name, below `lineage/roots`."""
        return f"{hashlib.sha256(self.root.encode()).hexdigest()}.json"


def parse_root_link(data: bytes, where: object) -> RootLink:
    """Reads a link.

    Raises:
        DamagedError: the data are not a link.
    """
    link = parse_model(data, where, RootLink, "The name of another root")
    if link.render() != data:
        raise DamagedError("The name of another root is not as it is written.", where=where)
    return link


def linked_roots(root: Location) -> Iterator[tuple[str, list[Location]]]:
    """The roots that a root names: each address as written, and where that root may be now, likeliest first."""
    folder = root / FOLDER / ROOTS_FOLDER
    for path in sorted(list_files(folder)):
        try:
            data = read_file(folder / path)
            link = parse_root_link(data, folder / path) if data is not None else None
            if link is None:
                continue
            places = [parse_location(link.root)]
            if link.relative is not None:
                places.append(follow(root, link.relative))
        except PaliGemmaError as error:
            log.warning("a root is not known by its name: %s", error)
            continue
        yield link.root, places


def connect(current: Attempt) -> None:
    """Links the root of an attempt's records and the roots of its inputs' records, in both directions.

    Warns if a link cannot be written, e.g. into a read-only root: answers from that root will miss the others.
    """
    try:
        homes = {str(home): home for one in current.inputs if one.record for home in _homes(one, current.root)}
    except (PaliGemmaError, OSError) as error:
        log.warning("the location of the inputs' records is unknown: %s", error)
        return
    for home in homes.values():
        for root, other in ((home, current.root), (current.root, home)):
            try:
                link = RootLink(root=absolute_uri(other), relative=relative_way(root, other))
                write_new_file(root / FOLDER / ROOTS_FOLDER / link.name, link.render())
            except (PaliGemmaError, OSError) as error:
                log.warning("lineage queries with --root %s will miss %s: %s", root, other, error)


def _homes(one: Input, own: Location) -> Iterator[Location]:
    """Other roots that have the record of an input: where the input is now, and where it was made."""
    place = parse_location(one.uri)
    data = read_file(place / RECORD_FILE)
    record = parse_record(data, place / RECORD_FILE) if data is not None else None
    if record is None or _has(own, record):
        return
    for start in dict.fromkeys((str(place), record.output)):
        home = next((above for above in _above(parse_location(start)) if _has(above, record)), None)
        if home is not None:
            yield home


def _above(place: Location) -> Iterator[Location]:
    """The parent folders of a location, nearest first."""
    while (above := place.parent) != place:
        yield above
        place = above


def _has(root: Location, record: Record) -> bool:
    """Whether a root has the record. The name alone decides, since it is unique to the attempt."""
    return exists(root / FOLDER / record.run / record.task, f"{record.attempt}.json")


def same_root(one: Location, others: Iterable[Location]) -> bool:
    """Whether a location is among the others."""
    return absolute_uri(one) in {absolute_uri(other) for other in others}
