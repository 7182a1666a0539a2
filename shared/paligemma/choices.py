"""Settings that are one of a few values, each typed once: for flags, parameters and functions. Importing this costs nothing."""

from __future__ import annotations

from typing import Literal

ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
"""What a model computes in; see `paligemma.precision`."""
StoredDtype = Literal["float16", "bfloat16", "float32"]
"""What parameters are kept in."""
QuantizedDtype = Literal["int8", "nf4"]
"""What weights are quantized to; see `paligemma.models.weight_formats`."""
DecodingWeights = Literal["stored", "int8", "nf4"]
"""What weights are read as for every token: as they are stored, or quantized."""
FrozenDtype = Literal["float16", "bfloat16", "float32", "int8", "nf4"]
"""What frozen parameters are kept in."""
ReleaseDtype = Literal["stored", "float32", "float16", "bfloat16"]
"""What a model is released in; `stored` leaves each parameter as it is."""
ExportDtype = Literal["stored", "float32", "float16", "bfloat16", "int8", "nf4"]
"""What a model is exported in; `int8` and `nf4` quantize weights."""
ModelFormat = Literal["big_vision", "huggingface"]
"""Layout of a model's files."""
TaskName = Literal["", "vqa", "caption", "docvqa", "chartqa", "detect", "segment", "classify", "ocr"]
"""What rows ask; see `paligemma.evaluation.tasks`. Empty: any text."""
OverLong = Literal["reject", "truncate"]
"""What becomes of rows with more tokens than a step takes."""
Compression = Literal["webp", "none", "gzip"]
"""How records store pictures: each losslessly as WebP, raw, or raw in shards that gzip packs whole."""
BoxPixels = Literal["auto", "displayed", "stored"]
"""What boxes on a photo with an EXIF orientation refer to: the photo as displayed, as stored, or what its sizes say."""
VqaFormName = Literal[
    "vqav2",
    "okvqa",
    "aokvqa-da",
    "aokvqa-mc",
    "gqa",
    "nlvr2",
    "textvqa",
    "stvqa",
    "ocrvqa",
    "vizwiz",
    "tallyqa",
    "docvqa",
    "infovqa",
    "chartqa",
    "ai2d",
    "scienceqa",
    "rsvqa-lr",
    "rsvqa-hr",
]
"""Published question sets; see `paligemma.data.convert.vqa_forms`."""
CaptionFormName = Literal["textcaps", "scicap", "screen2words", "widgetcap", "coco35l", "xm3600"]
"""Published captions that are not in COCO's form; see `paligemma.data.convert.captions`."""
CaptionRows = Literal["caption", "image"]
"""Whether captions make a row each, or a row for each image with all of its captions."""
BoxFormName = Literal["yolo", "voc", "cvat", "labelme", "label-studio"]
"""Exports of boxes that are not in COCO's form; see `paligemma.data.convert.box_forms`."""
