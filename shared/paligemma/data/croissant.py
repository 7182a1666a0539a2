"""Describes records in Croissant, the format in which catalogues of data sets exchange descriptions.

The format is that of version 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html; mlcommons/croissant,
docs/croissant-spec-1.0.md, "Dataset-level Information", "FileObject", "RecordSet"). It has no reader for TFRecords. So the
shards are described as files, and the record set is that of `rows.jsonl`, which has an entry for each row in them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from paligemma.artifacts.record import ROWS_FILE, File
from paligemma.data.records import Dataset

CROISSANT_FILE = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
JSON_LINES = "application/jsonlines"

_VOCABULARY = (
    "citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes", "isLiveDataset",
    "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "separator",
    "source", "subField", "transform",
)  # fmt: skip
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in _VOCABULARY},
}
"""What the names in a description stand for; "Appendix 1: JSON-LD context" of the format."""

_FORMATS = {
    ".jsonl": JSON_LINES,
    ".json": "application/json",
    ".html": "text/html",
    ".tfrecord": "application/x-tfrecord",
    ".gz": "application/gzip",
}
_TEXT, _NUMBER = "sc:Text", "sc:Integer"
_FIELDS = {
    "row_id": (_TEXT, "sha256 over the image's sha256, prefix and suffix"),
    "image_sha256": (_TEXT, "sha256 of the image file"),
    "image_dhash": (_TEXT, "difference hash of the picture, by which pictures that look the same are found"),
    "image_file": (_TEXT, "the image, as the row names it"),
    "line": (_NUMBER, "line of the source file, from 1"),
    "prefix_tokens": (_NUMBER, "tokens of the prefix, with bos and separator"),
    "suffix_tokens": (_NUMBER, "tokens of the suffix, with eos"),
    "shard": (_NUMBER, "number of the TFRecord file that has the row, from 0"),
    "position": (_NUMBER, "the row's place in that file, from 0"),
    "bytes": (_NUMBER, "size of the record's payload in that file"),
    "crc32c": (_TEXT, "checksum of the payload"),
}
_OF_IMAGES = ("image_sha256", "image_dhash", "image_file")
_SOURCE = {"source": (_TEXT, "the source file")}


def write_croissant(folder: Path, dataset: Dataset, files: Sequence[File]) -> None:
    """Writes the description of records beside them.

    Args:
        folder: where the records are.
        dataset: what they are.
        files: all files in the folder.
    """
    text = json.dumps(describe_records(dataset, files), indent=2)
    (folder / CROISSANT_FILE).write_text(f"{text}\n", encoding="utf-8")


def describe_records(dataset: Dataset, files: Sequence[File]) -> dict:
    """The description of records as a JSON value. It has no date, so that equal records have equal descriptions."""
    fields = _FIELDS | (_SOURCE if dataset.sources else {})
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"records-{dataset.split}",
        "description": f"{dataset.rows} rows of the split {dataset.split!r}, each an image, a prefix and a suffix, prepared "
        f"for PaliGemma at {dataset.image_size} x {dataset.image_size} pixels.",
        "url": "report.html",
        "version": "1.0.0",
        "distribution": [_file_object(file) for file in sorted(files, key=lambda file: file.path)],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "description": "The rows, in the order of the TFRecord files, which have the images, texts and tokens.",
                "field": [_field(name, *kind, dataset.images_per_example > 1) for name, kind in fields.items()],
            }
        ],
    }


def _file_object(file: File) -> dict:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": _FORMATS.get(Path(file.path).suffix, "application/octet-stream"),
        "sha256": file.sha256,
    }


def _field(name: str, data_type: str, description: str, several: bool) -> dict:
    """A field; `several` is whether each row has several images."""
    repeated = {"repeated": True} if several and name in _OF_IMAGES else {}
    return {
        "@type": "cr:Field",
        "@id": f"rows/{name}",
        "name": name,
        "description": description,
        "dataType": data_type,
        **repeated,
        "source": {"fileObject": {"@id": ROWS_FILE}, "extract": {"column": name}},
    }
