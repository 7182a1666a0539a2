"""The command `paligemma convert`: converts published data sets to the rows that prepare_data reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paligemma.choices import BoxFormName, BoxPixels, CaptionFormName, CaptionRows, VqaFormName
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
ImageTemplate = Annotated[
    str,
    typer.Option(
        "--image", help="Name of an image; {key} stands for a value of its question or caption.", show_default="the form's"
    ),
]
RowsFor = Annotated[
    CaptionRows,
    typer.Option(help="A row for each caption, to train on; or for each image with all its captions, to evaluate by."),
]


MaskCodesFile = Annotated[
    Path, typer.Option(help="Weights between masks and <seg> symbols: big_vision's vae-oid.npz, of gs://big_vision/paligemma.")
]
ClassesFile = Annotated[
    Path | None,
    typer.Option(
        help='JSON with names by palette index, grey level or colour: {"1": "cat", "#ff0000": "dog"}; or a list.',
        show_default="none: --label",
    ),
]
MasksWanted = Annotated[
    Path | None,
    typer.Option(
        "--mask-codes",
        help="Masks instead of boxes, as <seg> tokens too: big_vision's vae-oid.npz, of gs://big_vision/paligemma.",
        show_default="none: boxes",
    ),
]
BoxPixelsFlag = Annotated[
    BoxPixels,
    typer.Option(
        "--box-pixels",
        help="Boxes, masks on photos with an EXIF orientation: as displayed, as stored, or found out by their sizes.",
    ),
]


@convert.command("vqa")
def convert_vqa(
    form: Annotated[VqaFormName, typer.Option(help="The data set; presets have the same names.")],
    annotations: Annotated[Path, typer.Option(help="The published file with the answers; for ai2d, the folder questions.")],
    output: OutputFile,
    questions: Annotated[
        Path | None, typer.Option(help="The questions, where they are in a file of their own.", show_default="none")
    ] = None,
    images: ImageFolder = None,
    image: ImageTemplate = "",
    split: Annotated[
        str, typer.Option(help="Split to take, where a file has several: train, val or test.", show_default="none")
    ] = "",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each question of a published data set, with the most frequent answer, and all answers."""
    from paligemma.data.convert.look_up import look_up_images
    from paligemma.data.convert.outcomes import Tally, refuse_sources
    from paligemma.data.convert.vqa import vqa_rows
    from paligemma.data.convert.vqa_entries import Source
    from paligemma.data.convert.vqa_forms import FORMS

    folder = images or output.parent
    tally = Tally("questions", hint=_hint(images, output))
    refuse_sources(output, [questions] if questions else [])
    outcomes = vqa_rows(FORMS[form], Source(annotations, questions), folder, tally, image, split)
    outcomes = look_up_images(outcomes, folder, tally, max_reject_fraction, annotations, image or FORMS[form].images[0])
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, folder)


@convert.command("captions")
def convert_captions(
    form: Annotated[CaptionFormName, typer.Option(help="The data set; presets have the same names.")],
    annotations: Annotated[Path, typer.Option(help="The published file; for scicap, the folder with a split's captions.")],
    output: OutputFile,
    ids: Annotated[
        Path | None,
        typer.Option(
            help="The published list of a split's images, for scicap, screen2words, widgetcap.", show_default="every image"
        ),
    ] = None,
    language: Annotated[str, typer.Option(help="Code of a language, for coco35l and xm3600.", show_default="all")] = "",
    size: Annotated[
        int, typer.Option(help="Side of the pictures that widgetcap draws a box into: the model's resolution.", min=1, max=4096)
    ] = 224,
    images: ImageFolder = None,
    image: ImageTemplate = "",
    rows_for: RowsFor = "caption",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each caption of a published data set."""
    from paligemma.data.convert.captions import FORMS, Asked, by_image, caption_rows
    from paligemma.data.convert.look_up import look_up_images
    from paligemma.data.convert.outcomes import Tally, refuse_sources

    folder = images or output.parent
    tally = Tally("captions", hint=_hint(images, output))
    refuse_sources(output, [ids] if ids else [])
    outcomes = caption_rows(FORMS[form], Asked(annotations, folder, ids, language, size), tally, image)
    outcomes = by_image(outcomes) if rows_for == "image" else outcomes
    outcomes = look_up_images(outcomes, folder, tally, max_reject_fraction, annotations, image or FORMS[form].images[0])
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, folder)


@convert.command("coco-captions")
def convert_coco_captions(
    annotations: Annotated[Path, typer.Option(help="captions_*.json of COCO, plain or gzip.")],
    output: OutputFile,
    prefix: Annotated[str, typer.Option(help="Prefix of every row.")] = "caption en",
    images: ImageFolder = None,
    rows_for: RowsFor = "caption",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each caption in COCO's form, as COCO and nocaps have it."""
    from paligemma.data.convert.captions import by_image
    from paligemma.data.convert.coco import coco_captions
    from paligemma.data.convert.outcomes import Tally

    tally = Tally("annotations", hint=_hint(images, output))
    outcomes = coco_captions(annotations, prefix, images or output.parent, tally)
    outcomes = by_image(outcomes) if rows_for == "image" else outcomes
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, images or output.parent)


@convert.command("coco-detection")
def convert_coco_detection(
    annotations: Annotated[Path, typer.Option(help="instances_*.json of COCO, plain or gzip.")],
    output: OutputFile,
    images: ImageFolder = None,
    box_pixels: BoxPixelsFlag = "auto",
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
    classes: ClassesFile = None,
    label: Annotated[
        str, typer.Option(help="Instead of --classes: the name of all that is not 0.", show_default="none: --classes")
    ] = "",
    box_pixels: BoxPixelsFlag = "auto",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each photo and class, from pictures of masks."""
    from paligemma.data.convert.mask_pictures import mask_pictures
    from paligemma.data.convert.outcomes import Tally, refuse_sources
    from paligemma.errors import InputError

    named = _class_names(classes, label)
    if mask_name.count("{name}") != 1:
        raise InputError(f"{mask_name!r} does not name a mask.", where="--mask-name", expected="{name}_mask.png, for example")
    if classes is not None:
        refuse_sources(output, [classes])
    tally = Tally("masks", hint=_hint(images, output))
    outcomes = mask_pictures(images, masks, mask_name, named, _read_codes(mask_codes), tally, box_pixels, output)
    _write(output, outcomes, tally, masks, max_reject_fraction, validation_fraction, images)


@convert.command("boxes")
def convert_boxes(
    form: Annotated[BoxFormName, typer.Option(help="The tool, or its export.")],
    annotations: Annotated[
        Path,
        typer.Option(
            help="data.yaml of yolo; the folder of XML files of voc, of JSON files of labelme; the file of cvat, label-studio."
        ),
    ],
    output: OutputFile,
    images: ImageFolder = None,
    split: Annotated[
        str,
        typer.Option(help="Split to take, of yolo and voc: train, val, ...", show_default="yolo: train; voc: every image"),
    ] = "",
    mask_codes: MasksWanted = None,
    box_pixels: BoxPixelsFlag = "auto",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each image: the boxes of an annotation tool as <loc> tokens; or for each image and class: its masks."""
    from paligemma.data.convert.box_forms import FORMS
    from paligemma.data.convert.box_shapes import Export
    from paligemma.data.convert.detection import detection_rows
    from paligemma.data.convert.outcomes import Tally
    from paligemma.errors import InputError

    if split and form not in ("yolo", "voc"):
        raise InputError("--split has no meaning for this form.", expected="no --split")
    folder = images or output.parent
    tally = Tally("boxes", hint=_hint(images, output))
    found = FORMS[form](Export(annotations, folder, split, mask_codes is not None), tally)
    if mask_codes is None:
        outcomes = detection_rows(found, folder, box_pixels, tally)
    else:
        from paligemma.data.convert.segmentation import mask_rows

        outcomes = mask_rows(found, folder, box_pixels, _read_codes(mask_codes), tally)
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, folder)


@convert.command("refcoco")
def convert_refcoco(
    annotations: Annotated[
        Path,
        typer.Option(help="instances.json of RefCOCO; MDETR's finetune_refcoco_*.json; or Parquet as Hugging Face has it."),
    ],
    output: OutputFile,
    refs: Annotated[Path | None, typer.Option(help="The refs, as JSON, for instances.json.", show_default="none")] = None,
    images: ImageFolder = None,
    split: Annotated[str, typer.Option(help="Split to take: train, val, test, testA, testB.", show_default="all")] = "",
    mask_codes: MasksWanted = None,
    box_pixels: BoxPixelsFlag = "auto",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each referring expression of RefCOCO, RefCOCO+ or RefCOCOg: its box as <loc> tokens, or its mask."""
    from paligemma.data.convert.outcomes import Tally, refuse_sources
    from paligemma.data.convert.refcoco import expression_rows, expression_wording, read_expressions

    folder = images or output.parent
    tally = Tally("expressions", hint=_hint(images, output))
    refuse_sources(output, [refs] if refs else [])
    if mask_codes is None:
        outcomes = expression_rows(annotations, refs, split, folder, tally, box_pixels)
    else:
        from paligemma.data.convert.segmentation import mask_rows

        codes, found = _read_codes(mask_codes), read_expressions(annotations, refs, split, folder, True, tally)
        outcomes = mask_rows(found, folder, box_pixels, codes, tally, expression_wording, together=False)
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, folder)


@convert.command("vqav2")
def convert_vqav2(
    questions: Annotated[Path, typer.Option(help="v2_OpenEnded_mscoco_*_questions.json, plain or gzip.")],
    annotations: Annotated[Path, typer.Option(help="v2_mscoco_*_annotations.json, plain or gzip.")],
    output: OutputFile,
    images: Annotated[str, typer.Option(help="Name of an image; {:012d} is its number.")] = "COCO_train2014_{:012d}.jpg",
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each question, with the most frequent answer; as `vqa --form vqav2`, with images by their numbers."""
    from paligemma.data.convert.outcomes import Tally, refuse_sources
    from paligemma.data.convert.vqa import refuse_constant, vqa_rows
    from paligemma.data.convert.vqa_entries import Source
    from paligemma.data.convert.vqa_forms import FORMS

    tally = Tally("annotations")
    refuse_sources(output, [questions])
    refuse_constant(images)
    outcomes = vqa_rows(FORMS["vqav2"], Source(annotations, questions), output.parent, tally, images)
    _write(output, outcomes, tally, annotations, max_reject_fraction, validation_fraction, output.parent)


@convert.command("table")
def convert_table(
    table: Annotated[
        Path,
        typer.Option(
            help="CSV (with a header), Parquet, Arrow, JSONL or JSON; or a folder of a Hugging Face data set saved on disk, of "
            "Parquet files, or of WebDataset's tar files."
        ),
    ],
    output: OutputFile,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the image's path, or of its bytes, which are written out; or a path in which {name} stands for a "
            "column, as 'photos/{id}.jpg'. Given several times, each row has all of these images, in this order.",
            show_default="image",
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Prefix; {name} stands for a column.")] = "{prefix}",
    suffix: Annotated[
        str,
        typer.Option(
            help="Suffix; {name} stands for a column.", show_default="{suffix}; with --answers, the most frequent answer"
        ),
    ] = "",
    answers: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of a right answer, or of a list of all right answers, to evaluate by; may be given several times.",
            show_default="none",
        ),
    ] = None,
    masks: Annotated[
        str,
        typer.Option(
            help="Instead of prefix and suffix: column of a PNG picture in which a pixel's value is its class; or a path, as "
            "of the image. Needs --mask-codes, and --classes or --label.",
            show_default="none",
        ),
    ] = "",
    classes: ClassesFile = None,
    label: Annotated[
        str,
        typer.Option(
            help="Instead of --classes: the name of all that is not 0; {name} stands for a column.",
            show_default="none: --classes",
        ),
    ] = "",
    mask_codes: MasksWanted = None,
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
    """One row for each row of a table; or of a column of masks, for each row and class."""
    from paligemma.data.convert.look_up import look_up_images
    from paligemma.data.convert.outcomes import Tally, refuse_sources
    from paligemma.data.convert.table import table_rows
    from paligemma.errors import InputError

    tally = Tally("rows", hint=_hint(images, output))
    folder = images or output.parent
    wanted = image or ["image"]
    if masks or mask_codes is not None:
        from paligemma.data.convert.mask_tables import mask_table_rows

        if not masks or mask_codes is None or suffix or answers or prefix != "{prefix}":
            what = "Masks of a table need --masks and --mask-codes, and take no --prefix, --suffix and --answers."
            raise InputError(what, expected="--masks mask --classes classes.json --mask-codes vae-oid.npz")
        if len(wanted) > 1:
            raise InputError("Masks are of one image.", where="--image", expected="one --image, with --masks")
        refuse_sources(output, [classes] if classes else [])
        tally.unit, codes = "masks", _read_codes(mask_codes)
        named = _class_names(classes, label)
        outcomes = mask_table_rows(table, folder, wanted[0], masks, named, codes, tally, encoding, delimiter)
    else:
        if classes is not None or label:
            raise InputError("--classes and --label name the classes of masks.", expected="--masks COLUMN")
        suffix = suffix or ("" if answers else "{suffix}")
        outcomes = table_rows(table, folder, wanted, prefix, suffix, tally, encoding, delimiter, answers or ())
    outcomes = look_up_images(outcomes, folder, tally, max_reject_fraction, table, wanted[0])
    _write(output, outcomes, tally, table, max_reject_fraction, validation_fraction, folder)


@convert.command("croissant")
def convert_croissant(
    description: Annotated[Path, typer.Option(help="The Croissant file, metadata.json or croissant.json.")],
    output: OutputFile,
    record_set: Annotated[
        str, typer.Option(help="Record set whose records become rows.", show_default="the only one with images")
    ] = "",
    image: Annotated[
        str,
        typer.Option(
            help="Field with the image, or with its path; or a path in which {name} stands for a field, as 'photos/{id}.jpg'.",
            show_default="the only ImageObject",
        ),
    ] = "",
    prefix: Annotated[
        str,
        typer.Option(
            help="Prefix; {name} stands for a field.", show_default="the field prefix, question or prompt, else 'caption en'"
        ),
    ] = "",
    suffix: Annotated[
        str,
        typer.Option(
            help="Suffix; {name} stands for a field.", show_default="the field suffix, answer or caption, else the only Text"
        ),
    ] = "",
    answers: Annotated[
        list[str] | None,
        typer.Option(
            help="Field of a right answer, or of a list of all right answers, to evaluate by; may be given several times.",
            show_default="none",
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=PATH",
            help="Where a FileObject is on this machine, such as the clone of a repository; may be given several times.",
            show_default="beside the description, or fetched",
        ),
    ] = None,
    images: ImageFolder = None,
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each record of a data set that a Croissant file (MLCommons) describes."""
    from paligemma.data.convert.croissant import Choice, croissant_rows, parse_files
    from paligemma.data.convert.look_up import look_up_images
    from paligemma.data.convert.outcomes import Tally

    tally = Tally("records", hint=_hint(images, output))
    folder = images or output.parent
    choice = Choice(record_set, image, prefix, suffix, tuple(answers or ()))
    outcomes = croissant_rows(description, choice, parse_files(files or []), folder, tally)
    outcomes = look_up_images(outcomes, folder, tally, max_reject_fraction, description, image)
    _write(output, outcomes, tally, description, max_reject_fraction, validation_fraction, folder)


@convert.command("chat")
def convert_chat(
    conversations: Annotated[
        Path, typer.Option(help='JSON, JSONL or Parquet of {"messages"} or {"conversations"}, and their images.')
    ],
    output: OutputFile,
    images: ImageFolder = None,
    first_turn: Annotated[
        bool,
        typer.Option(
            "--first-turn", help="Of longer conversations, take the first question and its answer.", show_default="no"
        ),
    ] = False,
    max_reject_fraction: MaxRejectFraction = 0.1,
    validation_fraction: ValidationFraction = 0.0,
) -> None:
    """One row for each conversation: a question about an image, and its answer."""
    from paligemma.data.convert.chat import chat_rows
    from paligemma.data.convert.look_up import look_up_images
    from paligemma.data.convert.outcomes import Tally

    tally = Tally("conversations", hint=_hint(images, output))
    folder = images or output.parent
    outcomes = chat_rows(conversations, folder, first_turn, tally)
    outcomes = look_up_images(outcomes, folder, tally, max_reject_fraction, conversations, "")
    _write(output, outcomes, tally, conversations, max_reject_fraction, validation_fraction, folder)


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


def _class_names(classes: Path | None, label: str):
    from paligemma.data.convert.mask_pictures import is_name, read_classes
    from paligemma.errors import InputError

    if (classes is None) == (not label):
        raise InputError("Masks need names.", expected="either --classes FILE or --label NAME")
    if label and not is_name(label):
        raise InputError(f"{label!r} cannot name a class.", where="--label", expected="a name without ; and <")
    return read_classes(classes) if classes is not None else label.strip()


def _hint(images: Path | None, output: Path) -> str:
    if images is None or images.absolute() == output.absolute().parent:
        return ""
    return f"image names are relative to {images}: pass --images {images} to prepare_data"


def _read_codes(path: Path):
    from paligemma.data.convert.masks import MaskCodes
    from paligemma.data.mask_codes import read_decoder, read_encoder

    return MaskCodes(read_encoder(path), read_decoder(path))


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
        kept, held = split_rows(output, images, validation_fraction, output, validation, None)
        say(f"split by image: {kept} rows in {output}, {held} rows in {validation}")
