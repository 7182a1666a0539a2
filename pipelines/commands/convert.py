"""The command `paligemma convert`: data sets as they are published, to the rows that prepare_data reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paligemma.command_line import make_app

convert = make_app("Convert a data set to the JSONL that prepare_data reads. Images stay where they are.")
OutputFile = Annotated[Path, typer.Option(help="JSONL file to write.")]


@convert.command("coco-captions")
def convert_coco_captions(
    annotations: Annotated[Path, typer.Option(help="captions_*.json of COCO.")],
    output: OutputFile,
    prefix: Annotated[str, typer.Option(help="Prefix of every row.")] = "caption en",
) -> None:
    """One row for each caption."""
    from paligemma.data.convert import coco_captions, write_rows

    typer.echo(f"{write_rows(output, coco_captions(annotations, prefix))} rows")


@convert.command("coco-detection")
def convert_coco_detection(
    annotations: Annotated[Path, typer.Option(help="instances_*.json of COCO.")],
    output: OutputFile,
) -> None:
    """One row for each image: its boxes as <loc> tokens, with crowds left out."""
    from paligemma.data.convert import coco_detection, write_rows

    typer.echo(f"{write_rows(output, coco_detection(annotations))} rows")


@convert.command("vqav2")
def convert_vqav2(
    questions: Annotated[Path, typer.Option(help="v2_OpenEnded_mscoco_*_questions.json.")],
    annotations: Annotated[Path, typer.Option(help="v2_mscoco_*_annotations.json.")],
    output: OutputFile,
    images: Annotated[str, typer.Option(help="Name of an image; {:012d} is its number.")] = "COCO_train2014_{:012d}.jpg",
) -> None:
    """One row for each question, with the most frequent answer."""
    from paligemma.data.convert import vqav2, write_rows

    typer.echo(f"{write_rows(output, vqav2(questions, annotations, images))} rows")


@convert.command("table")
def convert_table(
    table: Annotated[Path, typer.Option(help="CSV (with a header), Parquet or JSONL file, as Hugging Face data sets have.")],
    output: OutputFile,
    image: Annotated[str, typer.Option(help="Column of the image's path, or of its bytes, which are written out.")] = "image",
    prefix: Annotated[str, typer.Option(help="Prefix; {name} stands for a column.")] = "{prefix}",
    suffix: Annotated[str, typer.Option(help="Suffix; {name} stands for a column.")] = "{suffix}",
) -> None:
    """One row for each row of a table."""
    from paligemma.data.convert import table_rows, write_rows

    typer.echo(f"{write_rows(output, table_rows(table, output.parent, image, prefix, suffix))} rows")


@convert.command("folder")
def convert_folder(
    folder: Annotated[Path, typer.Option(help="Folder with a folder of images for each label.")],
    output: OutputFile,
    prefix: Annotated[str, typer.Option(help="Prefix of every row.")] = "answer en what is this?",
) -> None:
    """One row for each image: the label is its folder's name."""
    from paligemma.data.convert import labelled_folder, write_rows

    typer.echo(f"{write_rows(output, labelled_folder(folder, prefix))} rows")
