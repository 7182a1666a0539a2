"""The command `paligemma convert`: converts published data sets to the rows that prepare_data reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paligemma.choices import BoxPixels
from paligemma.command_line import make_app
from paligemma.terminal import say

convert = make_app("Convert a data set to the JSONL that prepare_data reads. Images stay where they are.")
OutputFile = Annotated[Path, typer.Option(help="JSONL file to write; what is skipped is listed in OUTPUT.skipped.jsonl.")]
MaxRejectFraction = Annotated[
    float, typer.Option(help="Fail when a larger share of the data set cannot be used.", min=0, max=1)
]
ValidationFraction = Annotated[
    float,
    typer.Option(
        help="Share of the images whose rows go to a second file, OUTPUT with .validation before its ending.", min=0, max=0.9
    ),
]
ImageFolder = Annotated[
    Path | None, typer.Option(help="Folder that image names are relative to.", show_default="the folder of --output")
]


MaskCodesFile = Annotated[
    Path, typer.Option(help="Weights between masks and <seg> symbols: big_vision's vae-oid.npz, of gs://big_vision/paligemma.")
]
BoxPixelsFlag = Annotated[
    BoxPixels,
    typer.Option(help="Masks on photos with an EXIF orientation: as displayed, as stored, or found out by their sizes."),
]


@convert.command("coco-captions")
def convert_coco_captions(
    annotations: Annotated[Path, typer.Option(help="captions_*.json of COCO, plain or gzip.")],
    output: OutputFile,
    prefix: Annotated[str, typer.Option(help="Prefix of every row.")] = "caption en",
    images: ImageFolder = None,
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each caption."""
    from paligemma.data.convert.coco import coco_captions
    from paligemma.data.convert.outcomes import Tally

    tally = Tally("annotations", hint=_hint(images, output))
    outcomes = coco_captions(annotations, prefix, images or output.parent, tally)
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, images or output.parent)


@convert.command("coco-detection")
def convert_coco_detection(
    annotations: Annotated[Path, typer.Option(help="instances_*.json of COCO, plain or gzip.")],
    output: OutputFile,
    images: ImageFolder = None,
    box_pixels: Annotated[
        BoxPixels,
        typer.Option(help="Boxes on photos with an EXIF orientation: as displayed, as stored, or found out by their sizes."),
    ] = "auto",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each image: its boxes as <loc> tokens, with crowds left out."""
    from paligemma.data.convert.coco import coco_detection
    from paligemma.data.convert.outcomes import Tally

    tally = Tally("annotations", hint=_hint(images, output))
    outcomes = coco_detection(annotations, images or output.parent, tally, box_pixels)
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, images or output.parent)


@convert.command("coco-instances")
def convert_coco_instances(
    annotations: Annotated[Path, typer.Option(help="instances_*.json of COCO, plain or gzip.")],
    output: OutputFile,
    mask_codes: MaskCodesFile,
    images: ImageFolder = None,
    box_pixels: BoxPixelsFlag = "auto",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each image and class: masks as <seg> tokens, with crowds left out."""
    from paligemma.data.convert.coco_masks import coco_instances
    from paligemma.data.convert.outcomes import Tally

    tally, folder = Tally("annotations", hint=_hint(images, output)), images or output.parent
    outcomes = coco_instances(annotations, folder, _read_codes(mask_codes), tally, box_pixels)
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, folder)


@convert.command("coco-panoptic")
def convert_coco_panoptic(
    annotations: Annotated[Path, typer.Option(help="panoptic_*.json of COCO, plain or gzip.")],
    masks: Annotated[Path, typer.Option(help="Folder of the PNG pictures in which each segment has a colour.")],
    output: OutputFile,
    mask_codes: MaskCodesFile,
    images: ImageFolder = None,
    box_pixels: BoxPixelsFlag = "auto",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each image and class, things and stuff, with crowds left out."""
    from paligemma.data.convert.coco_masks import coco_panoptic
    from paligemma.data.convert.outcomes import Tally

    tally, folder = Tally("segments", hint=_hint(images, output)), images or output.parent
    outcomes = coco_panoptic(annotations, folder, masks, _read_codes(mask_codes), tally, box_pixels)
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, folder)


@convert.command("masks")
def convert_masks(
    images: Annotated[Path, typer.Option(help="Folder of the photos.")],
    masks: Annotated[Path, typer.Option(help="Folder of the PNG pictures in which a pixel's value is its class.")],
    output: OutputFile,
    mask_codes: MaskCodesFile,
    mask_name: Annotated[
        str, typer.Option(help="A mask's path; {name} stands for its photo's, up to the ending.")
    ] = "{name}.png",
    classes: Annotated[
        Path | None,
        typer.Option(
            help='JSON with names by palette index, grey level or colour: {"1": "cat", "#ff0000": "dog"}; or a list.',
            show_default="none: --label",
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(help="Instead of --classes: the name of all that is not 0.", show_default="none: --classes")
    ] = "",
    box_pixels: BoxPixelsFlag = "auto",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each photo and class, from pictures of masks."""
    from paligemma.data.convert.mask_pictures import is_name, mask_pictures, read_classes
    from paligemma.data.convert.outcomes import Tally, refuse_sources
    from paligemma.errors import InputError

    if (classes is None) == (not label):
        raise InputError("Masks need names.", expected="either --classes FILE or --label NAME")
    if label and not is_name(label):
        raise InputError(f"{label!r} cannot name a class.", where="--label", expected="a name without ; and <")
    if mask_name.count("{name}") != 1:
        raise InputError(f"{mask_name!r} does not name a mask.", where="--mask-name", expected="{name}_mask.png, for example")
    if classes is not None:
        refuse_sources(output, [classes])
    tally = Tally("masks", hint=_hint(images, output))
    named = read_classes(classes) if classes is not None else label.strip()
    outcomes = mask_pictures(images, masks, mask_name, named, _read_codes(mask_codes), tally, box_pixels, output)
    _write(output, outcomes, tally, masks, max_reject_fraction, validation_fraction, images)


@convert.command("vqav2")
def convert_vqav2(
    questions: Annotated[Path, typer.Option(help="v2_OpenEnded_mscoco_*_questions.json, plain or gzip.")],
    annotations: Annotated[Path, typer.Option(help="v2_mscoco_*_annotations.json, plain or gzip.")],
    output: OutputFile,
    images: Annotated[str, typer.Option(help="Name of an image; {:012d} is its number.")] = "COCO_train2014_{:012d}.jpg",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each question, with the most frequent answer."""
    from paligemma.data.convert.outcomes import Tally, refuse_sources
    from paligemma.data.convert.vqa import vqav2

    tally = Tally("annotations")
    refuse_sources(output, [questions])
    outcomes = vqav2(questions, annotations, images, tally)
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, output.parent)


@convert.command("table")
def convert_table(
    table: Annotated[Path, typer.Option(help="CSV (with a header), Parquet, JSONL or JSON, as Hugging Face data sets have.")],
    output: OutputFile,
    image: Annotated[
        str,
        typer.Option(
            help="Column of the image's path, or of its bytes, which are written out; or a path in which {name} stands for a "
            "column, as 'photos/{id}.jpg'."
        ),
    ] = "image",
    prefix: Annotated[str, typer.Option(help="Prefix; {name} stands for a column.")] = "{prefix}",
    suffix: Annotated[str, typer.Option(help="Suffix; {name} stands for a column.")] = "{suffix}",
    images: ImageFolder = None,
    encoding: Annotated[
        str, typer.Option(help="Of CSV and JSONL: latin-1, utf-16, ...", show_default="its byte order mark's, else UTF-8")
    ] = "",
    delimiter: Annotated[
        str,
        typer.Option(help="Between the cells of CSV.", show_default="a tab in .tsv, else the one that the header has"),
    ] = "",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each row of a table."""
    from paligemma.data.convert.look_up import look_up_images
    from paligemma.data.convert.outcomes import Tally
    from paligemma.data.convert.table import table_rows

    tally = Tally("rows", hint=_hint(images, output))
    folder = images or output.parent
    outcomes = table_rows(table, folder, image, prefix, suffix, tally, encoding, delimiter)
    outcomes = look_up_images(outcomes, folder, tally, max_reject_fraction, table, image)
    _write(output, outcomes, tally, table, max_reject_fraction, validation_fraction, folder)


@convert.command("folder")
def convert_folder(
    folder: Annotated[Path, typer.Option(help="Folder with a folder of images for each label.")],
    output: OutputFile,
    prefix: Annotated[str, typer.Option(help="Prefix of every row.")] = "answer en what is this?",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each image: the label is its folder's name."""
    from paligemma.data.convert.folder import labelled_folder
    from paligemma.data.convert.outcomes import Tally

    tally = Tally("files", hint=_hint(folder, output))
    outcomes = labelled_folder(folder, prefix, tally, output)
    _write(output, outcomes, tally, folder, max_reject_fraction, validation_fraction, folder)


def _read_codes(path: Path):
    from paligemma.data.convert.masks import MaskCodes
    from paligemma.data.mask_codes import read_decoder, read_encoder

    return MaskCodes(read_encoder(path), read_decoder(path))


def _hint(images: Path | None, output: Path) -> str:
    if images is None or images.absolute() == output.absolute().parent:
        return ""
    return f"image names are relative to {images}: pass --images {images} to prepare_data"


def _write(
    output: Path, outcomes, tally, source: Path, max_reject_fraction: float, validation_fraction: float, images: Path
) -> None:
    from paligemma.data.convert.outcomes import refuse_sources, write_rows
    from paligemma.data.split import split_rows

    validation = output.with_name(f"{output.stem}.validation{output.suffix}")
    refuse_sources(output, [source])
    if validation_fraction:
        refuse_sources(validation, [source])
    write_rows(output, outcomes, tally, source, max_reject_fraction)
    for line in tally.lines(output):
        say(line)
    if validation_fraction:
        kept, held = split_rows(output, images, validation_fraction, output, validation)
        say(f"split by image: {kept} rows in {output}, {held} rows in {validation}")
