"""Names of images from an entry's values: `COCO_train2014_{image_id:012d}.jpg`, or the first of several names that is there."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from paligemma.data.convert.look_up import is_there
from paligemma.data.convert.names import id_of, image_name
from paligemma.data.convert.outcomes import EntryError, Tally, is_read_from, shown
from paligemma.data.convert.table import Template


class ImageTemplate(Template):
    """A name in which `{key}` stands for a value that is a text or a whole number, and `{}` for the image's id.

    A text of digits is a number where the template wants one: "42" in `{image_id:012d}`.
    """

    def _names(self, text: str | None) -> Iterator[str]:
        for _, name, _, _ in self.parse(text or ""):
            if name is not None:
                yield name or "image_id"

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get("image_id" if isinstance(key, int) else key)

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        value = self.get_value(0 if field_name.isdigit() else field_name, args, kwargs)
        text = id_of(value)
        if text is None:
            raise EntryError("image_id_missing", f"{field_name if not field_name.isdigit() else 'image_id'} is {shown(value)}")
        return text, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if not format_spec.endswith("d"):
            return super().format_field(value, format_spec)
        if not value.isascii() or not value.isdigit() or len(value) > 30:
            raise EntryError("image_id_missing", f"the id is {shown(value)}, and the images' names have a number")
        return super().format_field(int(value), format_spec)


def name_image(names: Sequence[ImageTemplate], values: Mapping[str, Any], folder: Path, tally: Tally) -> str:
    """The name of an entry's image, relative to the image folder: of several names, the first that is there.

    Raises:
        EntryError: the entry lacks what a name is made of.
    """
    filled = [name.fill(values) for name in names]
    found = first_there(filled, folder)
    if "\0" in found:
        raise EntryError("image_unnamed", f"the image's name is {shown(found)}")
    return image_name(found, folder, tally)


def name_or_address(names: Sequence[str], folder: Path, tally: Tally) -> str:
    """The first of some names that is a file in the folder, also by the last part of an address.

    If none is, the address among them that prepare_data reads, a `gs://` or `https://`; else the first name.
    """
    addresses = [name for name in names if is_read_from(name)]
    here = [name for name in names if name not in addresses] + [_last_part(address) for address in addresses]
    found = next((name for name in here if name and is_there(folder, name)), "")
    if found or not addresses:
        return image_name(found or names[0], folder, tally)
    tally.note("address_kept", shown(addresses[0]))
    return addresses[0]


def _last_part(address: str) -> str:
    """The name of a file; empty if the address is none."""
    try:
        return posixpath.basename(unquote(urlsplit(address).path))
    except ValueError:
        return ""


def first_there(names: Sequence[str], folder: Path) -> str:
    """The first of some names that is a file in the folder; the first one if none is."""
    return next((name for name in names if is_there(folder, name)), names[0]) if len(names) > 1 else names[0]
