"""The command line of `prepare_data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paligemma.artifacts.recording import recorded
from paligemma.choices import Compression, OverLong
from paligemma.command_line import run_command


@recorded("prepare_data")
def run(
    data: Annotated[
        list[str],
        typer.Option(
            help='JSONL file of {"image", "prefix", "suffix"} rows, plain or gzip, local or gs://; {date}: the run\'s UTC day. '
            "Repeatable, for a mixture: FILE,weight=3,images=FOLDER."
        ),
    ],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint whose tokenizer and image size to prepare for.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the records to.")],
    images: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that image paths are relative to.", show_default="the JSONL file's folder"),
    ] = "",
    split: Annotated[str, typer.Option(help="Name of the split; begins the shards' names.")] = "train",
    max_text_tokens: Annotated[
        int, typer.Option(help="Maximum tokens of prefix and suffix, including bos, separator and eos.", min=4)
    ] = 128,
    over_long: Annotated[OverLong, typer.Option(help="Over-long rows: reject, or cut the suffix before its eos.")] = "reject",
    max_reject_fraction: Annotated[
        float, typer.Option(help="Fail when a larger share of the rows is rejected.", min=0, max=1)
    ] = 0.1,
    rows_per_shard: Annotated[int, typer.Option(help="Lines of the JSONL file that make up a shard.", min=1)] = 2000,
    compression: Annotated[
        Compression, typer.Option(help="How records store pictures: losslessly packed, raw, or raw in packed shards.")
    ] = "webp",
    against: Annotated[
        str,
        typer.Option(
            help="Another split, records or JSONL: rows and images found there too are warned of.", show_default="none"
        ),
    ] = "",
    workers: Annotated[int, typer.Option(help="Processes; 0 is one for each core.", min=0)] = 0,
    grey_range: Annotated[
        str,
        typer.Option(
            help="Samples that are black and white in grey pictures, LOW,HIGH, e.g. 0,4095 for 12 bits.",
            show_default="as each file states",
        ),
    ] = "",
    images_per_example: Annotated[
        int, typer.Option(help="Images in every row; rows with another number are rejected.", min=1)
    ] = 1,
) -> None:
    """Prepares one split of a data set. Bad rows are counted by reason and listed in rejected.jsonl."""
    arguments = locals()  # before anything else has a name here
    from components.prepare_data.main import prepare_data
    from paligemma.data.source_list import parse_flags, sources_text

    named = [data] if isinstance(data, str | Path) else data  # a call in Python may name one
    arguments["data"] = sources_text(parse_flags([str(one) for one in named], "--data"))
    prepare_data(**arguments)


def main() -> None:
    """The command line."""
    run_command(run, "prepare_data")


if __name__ == "__main__":
    main()
