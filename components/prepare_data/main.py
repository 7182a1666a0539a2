"""JSONL rows and an image folder to validated, tokenized TFRecord shards with a report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paligemma.command_line import run_command

if TYPE_CHECKING:
    from paligemma.data.prepare import Preparation
    from paligemma.data.records import Dataset

log = logging.getLogger("paligemma.prepare_data")


def run(
    data: Annotated[str, typer.Option(help='JSONL file of {"image", "prefix", "suffix"} rows, local or gs://.')],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint whose tokenizer and image size to prepare for.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write the records to.")],
    images: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that image paths are relative to.", show_default="the JSONL file's folder"),
    ] = "",
    split: Annotated[str, typer.Option(help="Name of the split; begins the shards' names.")] = "train",
    max_text_tokens: Annotated[
        int, typer.Option(help="Most tokens of prefix and suffix, with bos, separator and eos.", min=4)
    ] = 128,
    over_long: Annotated[
        Literal["reject", "truncate"], typer.Option(help="Over-long rows: reject, or cut the suffix before its eos.")
    ] = "reject",
    max_reject_fraction: Annotated[
        float, typer.Option(help="Fail when a larger share of the rows is rejected.", min=0, max=1)
    ] = 0.1,
    rows_per_shard: Annotated[int, typer.Option(help="Rows in a shard, but for the last.", min=1)] = 2000,
    compression: Annotated[Literal["none", "gzip"], typer.Option(help="Compression of the shards.")] = "none",
) -> None:
    """Prepares one split of a data set. Bad rows are counted by reason and listed in rejected.jsonl."""
    import json
    import re

    from paligemma.checkpoints.open import open_checkpoint
    from paligemma.data.image_source import open_images
    from paligemma.data.prepare import Preparation
    from paligemma.data.records import ARTIFACT_TYPE, DATASET_FILE, REJECTED_FILE, Dataset, write_shards
    from paligemma.data.tokenizer import Tokenizer
    from paligemma.errors import InputError
    from paligemma.lineage.artifact import input_of, localize, produce
    from paligemma.progress import WorkProgress
    from paligemma.storage.files import parent_of

    opened = open_checkpoint(checkpoint)
    if opened.tokenizer is None:
        raise InputError("The checkpoint has no tokenizer.", where=checkpoint, fix="run fetch_checkpoint with --tokenizer")
    rows_file = localize(data)
    if not rows_file.is_file():
        raise InputError(f"There is no data file {data}.", expected="a JSONL file")
    image_source = open_images(images or parent_of(data))
    if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        raise InputError(f"The split's name is {split!r}.", expected="letters, digits, - and _")

    tokenizer, size = Tokenizer(opened.tokenizer), opened.config.img.image_size
    preparation = Preparation(image_source, tokenizer, size, max_text_tokens, over_long)
    parameters = {
        "split": split,
        "image_size": size,
        "max_text_tokens": max_text_tokens,
        "over_long": over_long,
        "max_reject_fraction": max_reject_fraction,
        "rows_per_shard": rows_per_shard,
        "compression": compression,
    }
    inputs = [input_of("data", data), input_of("checkpoint", opened.location), input_of("tokenizer", opened.tokenizer)]
    with produce(output, ARTIFACT_TYPE, "prepare_data", parameters, inputs) as draft:
        with (
            (draft.folder / REJECTED_FILE).open("w") as rejects,
            WorkProgress(f"preparing {split}", "rows") as progress,
        ):

            def watched():
                for example in preparation.examples(rows_file, rejects):
                    progress.advance(preparation.lines - progress.done, f"{preparation.reject_count} rejected")
                    yield example

            shards = write_shards(draft.folder, split, watched(), rows_per_shard, compression)
        _check_rejects(preparation, max_reject_fraction, data, output, draft.folder / REJECTED_FILE)
        dataset = Dataset(
            split=split,
            rows=preparation.rows,
            rejected=dict(sorted(preparation.rejected.items())),
            truncated=preparation.truncated,
            image_size=size,
            max_text_tokens=max_text_tokens,
            tokenizer_sha256=tokenizer.sha256,
            compression=compression,
            prefix_tokens=dict(sorted(preparation.prefix_tokens.items())),
            suffix_tokens=dict(sorted(preparation.suffix_tokens.items())),
            text_tokens=dict(sorted(preparation.text_tokens.items())),
            shards=shards,
        )
        (draft.folder / DATASET_FILE).write_text(json.dumps(dataset.model_dump(), indent=2) + "\n")
        (draft.folder / "report.html").write_text(_report(dataset, preparation, data))
        draft.rows = dataset.rows
    log.info("%d rows kept, %d rejected, in %s", dataset.rows, preparation.reject_count, output)


def _check_rejects(preparation: Preparation, most: float, data: str, output: str, rejected: Path) -> None:
    """Fails the step when too many rows are bad, and leaves the whole list beside the output."""
    from paligemma.errors import InputError
    from paligemma.storage.files import write_file

    if preparation.rows and preparation.reject_count <= most * preparation.lines:
        return
    kept = f"{str(output).rstrip('/')}.rejected.jsonl"
    write_file(kept, rejected.read_bytes())
    reasons = ", ".join(f"{count} {code}" for code, count in preparation.rejected.most_common())
    first = "".join(f"\n    line {r['line']}: {r['code']}, {r['message']}" for r in preparation.first_rejects[:20])
    raise InputError(
        f"{preparation.reject_count} of {preparation.lines} rows were rejected ({reasons or 'the file is empty'}).{first}",
        where=data,
        expected=f"at least one usable row, and at most {most:.0%} rejected (--max-reject-fraction)",
        fix=f"see {kept} for every rejected line",
    )


def _report(dataset: Dataset, preparation: Preparation, data: str) -> str:
    from paligemma.data.rows import REASONS
    from paligemma.reports.page import image_uri, render

    sample = [
        {
            "image": image_uri(example.image),
            "image_file": example.image_file,
            "prefix": example.prefix,
            "suffix": example.suffix,
            "line": example.line,
            "tokens": len(example.prefix_ids) + len(example.suffix_ids),
        }
        for example in sorted(preparation.sample, key=lambda example: example.line)
    ]
    return render(
        "dataset.html",
        dataset=dataset,
        source=str(data).rsplit("/", 1)[-1],
        sample=sample,
        frequent=preparation.suffixes.most_common(20),
        rejects=preparation.first_rejects,
        reasons=REASONS,
    )


def main() -> None:
    """The command line."""
    run_command(run, "prepare_data")


if __name__ == "__main__":
    main()
