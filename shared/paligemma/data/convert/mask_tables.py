"""Converts tables in which a column has a PNG picture of masks for each image, as Hugging Face's data sets for segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paligemma.choices import BoxPixels
from paligemma.data.convert.detection import label_of
from paligemma.data.convert.mask_pictures import Classes, PicturePair, picture_rows
from paligemma.data.convert.masks import MaskCodes
from paligemma.data.convert.names import image_name
from paligemma.data.convert.outcomes import EntryError, Outcome, Tally
from paligemma.data.convert.table import Template, stored_image
from paligemma.data.convert.table_files import read_table
from paligemma.data.convert.table_folders import read_folder
from paligemma.errors import did_you_mean


def mask_table_rows(
    table: Path,
    folder: Path,
    image: str,
    masks: str,
    classes: Classes | str,
    codes: MaskCodes,
    tally: Tally,
    encoding: str = "",
    delimiter: str = "",
    box_pixels: BoxPixels = "auto",
) -> Iterator[Outcome]:
    """A row for every class that the picture of masks in a row of a table shows; see `segment_rows`.

    Args:
        table, folder, tally, encoding, delimiter: see `table_rows`. Pictures that are bytes are written to `images/` too.
        image: column of the image, or a path in which `{name}` stands for a column.
        masks: column of the PNG picture, a path or bytes; or a path as for the image.
        classes: names by value; or the name of all that is not 0, in which `{name}` stands for a column.
        codes: encodes and decodes masks.
        box_pixels: whether masks are in pixels as displayed or as stored, for images with an EXIF orientation.

    Raises:
        InputError: the table cannot be read, or lacks a column.
    """
    named = {text: Template(text, table) for text in (image, masks) if "{" in text}
    label = Template(classes, table) if isinstance(classes, str) else None
    columns = [column for text in (image, masks) for column in (named[text].columns if text in named else [text])]
    columns = list(dict.fromkeys([*columns, *(label.columns if label else ())]))

    def name_of(text: str, values: dict[str, Any]) -> str:
        if text in named:
            return image_name(named[text].fill(values), folder, tally)
        if text not in values:
            raise EntryError("column_missing", f"there is no {text!r}: {did_you_mean(text, values)}")
        if isinstance(values[text], EntryError):  # a part of a row that cannot be read
            raise values[text]
        return image_name(stored_image(values[text], folder), folder, tally)

    def pairs() -> Iterator[PicturePair]:
        rows = read_folder(table, folder, columns) if table.is_dir() else read_table(table, columns, tally, encoding, delimiter)
        for entry, values in rows:
            try:
                if isinstance(values, EntryError):
                    raise values
                said = label_of(label.fill(values)) if label else classes
                yield entry, (name_of(image, values), name_of(masks, values), said)
            except EntryError as problem:
                yield entry, problem

    yield from picture_rows(pairs(), folder, folder, codes, tally, box_pixels)
