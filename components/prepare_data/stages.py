"""The stages of preparing a split, on one machine or many: open inputs, find the work folder, finish."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL

import paligemma.data
from components.prepare_data.report import lines_shown, render_report
from paligemma.artifacts.record import RECORD_FILE, ROWS_FILE, Input, MadeRecord, canonical_sha256, file_sha256, list_files
from paligemma.artifacts.recording import in_pipeline
from paligemma.artifacts.results import Result
from paligemma.artifacts.store import Draft, artifact_at, file_of, input_of, localize
from paligemma.checkpoints.describe import describe_opened
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.choices import Compression, OverLong
from paligemma.data.croissant import write_croissant
from paligemma.data.duplicates import Listing, read_listing
from paligemma.data.earlier_records import TakenOver, compare_rows, read_seen, take_over
from paligemma.data.image_source import is_of_the_image, mark_of, open_images
from paligemma.data.jsonl_files import LineRange, is_gzip, unpack
from paligemma.data.merge_shards import assemble, gather_facts, stored_pictures
from paligemma.data.pictures.levels import parse_grey_range
from paligemma.data.prepare import Facts, Job, part_file
from paligemma.data.records import Dataset, SourceRows, open_records
from paligemma.data.row_sources import RowSource, folder_marks, open_folders, open_sources, read_sources
from paligemma.data.rows import MOST_IMAGES, Row, RowError, read_all_rows, row_id
from paligemma.data.stored_pictures import encoder_version
from paligemma.data.tokenizer import Tokenizer
from paligemma.data.web_images import WebImage, fetch_images
from paligemma.errors import InputError, PaliGemmaError, one_of
from paligemma.reports.page import write_page
from paligemma.storage import cache
from paligemma.storage.atomic import clear
from paligemma.storage.disk_space import check_space
from paligemma.storage.failures import StorageUnavailableError
from paligemma.storage.files import exists, write_file
from paligemma.storage.folders import kind_of
from paligemma.storage.location import absolute_uri, parse_location

FINGERPRINT_FILE = "fingerprint"
EARLIER_FOLDER = "earlier"
"""In the work folder: files of earlier records in Cloud Storage."""

log = logging.getLogger("paligemma.prepare_data")


@dataclass(frozen=True)
class Inputs:
    """A split's inputs, opened and checked.

    Attributes:
        sources: the JSONL files, maybe packed, with their images.
        model: a line that describes the checkpoint, for the page.
        against: another split; empty for none. `against_images` is its image folder, if it is a JSONL file.
    """

    sources: Sequence[RowSource]
    checkpoint: str
    model: str
    tokenizer: Path
    tokenizer_sha256: str
    image_size: int
    against: str
    against_images: str

    def records(self) -> list[Input]:
        """The inputs for the lineage record."""
        data = [("data", source.data) for source in self.sources]
        named = [*data, ("checkpoint", self.checkpoint), ("tokenizer", self.tokenizer)]
        return [input_of(role, where) for role, where in named + [("against", self.against)] * bool(self.against)]


def open_inputs(data: str, checkpoint: str, images: str, split: str, against: str) -> Inputs:
    """Opens the inputs, and checks everything before any work is done.

    Raises:
        InputError: an input is wrong.
    """
    opened = open_checkpoint(checkpoint)
    if opened.tokenizer is None:
        raise InputError("The checkpoint has no tokenizer.", where=checkpoint, fix="run fetch_checkpoint with --tokenizer")
    sources = open_sources(data, images)
    open_folders(sources)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        raise InputError(f"The split's name is {split!r}.", expected="letters, digits, - and _")
    against = str(artifact_at(against)) if against else ""  # the folder of a task may only say where its records are
    if against and not localize(against).exists():
        raise InputError(f"There is no data set {against}.", expected="records, or a JSONL file", fix="check --against")
    return Inputs(
        sources=sources,
        checkpoint=opened.location,
        model=describe_opened(opened),
        tokenizer=Path(opened.tokenizer).absolute(),
        tokenizer_sha256=Tokenizer(opened.tokenizer).sha256,
        image_size=opened.config.img.image_size,
        against=str(against),
        against_images=absolute_uri(parse_location(images or parse_location(against).parent)),
    )


def checked_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what becomes of a line; a grey range is normalized, and left out if empty.

    The number of images is left out if it is 1.

    Raises:
        InputError: the grey range or the number of images is invalid, or a choice is none of the choices.
    """
    one_of(given["over_long"], get_args(OverLong), "--over-long")
    one_of(given["compression"], get_args(Compression), "--compression")
    grey_range = parse_grey_range(str(given.get("grey_range", "")))
    images = given.get("images_per_example", 1)
    if not 1 <= images <= MOST_IMAGES:
        expected = f"1 to {MOST_IMAGES}"
        raise InputError(f"A row cannot have {images} images.", where="--images-per-example", expected=expected)
    settings = {name: value for name, value in given.items() if name not in ("grey_range", "images_per_example")}
    settings |= {"grey_range": str(grey_range)} if grey_range else {}
    return settings | ({"images_per_example": images} if images > 1 else {})


def images_of(settings: Mapping[str, Any]) -> int:
    """The number of images in every row, by settings from `checked_settings`."""
    return settings.get("images_per_example", 1)


def parameters_of(inputs: Inputs, split: str, settings: Mapping[str, Any], max_reject_fraction: float) -> dict[str, object]:
    """Everything besides the inputs that determines the records. The number of processes does not."""
    mixture = {
        source.name: {"number": number, "sha256": file_sha256(source.file), "weight": source.weight}
        for number, source in enumerate(inputs.sources, 1)
        if source.name
    }
    also: dict[str, object] = {"sources": mixture} if mixture else {}
    return {"split": split, "image_size": inputs.image_size, **settings, "max_reject_fraction": max_reject_fraction, **also}


def fetch_web_images(rows: Iterable[tuple[int, Row | RowError]]) -> dict[str, WebImage]:
    """What the web addresses of rows give, by the images' names. They are fetched once, before all else."""
    return fetch_images(row for _, row in rows if isinstance(row, Row))


def marks_of(inputs: Inputs, web: Mapping[str, WebImage], images: int) -> dict[str, str]:
    """What each image is, by its name in the rows; empty outside a pipeline, where nobody compares it with earlier ones."""
    if not in_pipeline():
        return {}
    names, marks = set(), {}
    rows = (row for _, row in read_sources(inputs.sources, images) if isinstance(row, Row))
    for image in (image for row in rows for image in row.images):
        if image.inline is None:
            names.add(image.name)
        else:
            marks[image.name] = mark_of(image.inline)
    marks |= folder_marks(inputs.sources, names, web)
    return dict(sorted(marks.items()))


def result_of(inputs: Inputs, parameters: Mapping[str, Any], marks: Mapping[str, str]) -> Result:
    """The records of these rows and images, so that a run finds those of an earlier run.

    Images of another split in a JSONL file are not looked at, so records beside one are always made.
    """
    if not in_pipeline() or (inputs.against and not exists(inputs.against, RECORD_FILE)):
        return Result.none("prepare_data")
    also = {"images": canonical_sha256(list(marks.values())), "encoder": encoder_version(parameters["compression"])}
    return Result.of("prepare_data", Path(__file__).parent, parameters, inputs.records(), **also)


def latest_of(inputs: Inputs, split: str, settings: Mapping[str, Any], data: str) -> list[Result]:
    """The last records that were made with these settings: of the same data file, and of any; none outside a pipeline.

    Args:
        inputs: the inputs.
        split: its name.
        settings: what decides what becomes of a line.
        data: the data file as the user names it, with `{date}`; one root may have records of several data sets.
    """
    if not in_pipeline():
        return []
    determined_by = {"split": split, "image_size": inputs.image_size, "tokenizer": inputs.tokenizer_sha256, **settings}
    of = ("prepare_data", Path(__file__).parent, determined_by)
    return [Result.latest_of(*of, data=name, encoder=encoder_version(settings["compression"])) for name in (data, "")]


def take_from_earlier(
    latest: Sequence[Result], job: Job, parts: Sequence[LineRange], marks: Mapping[str, str], folder: Path
) -> TakenOver:
    """Takes over what did not change since the latest records that can be reused, if there are any, and says what."""
    record = next(filter(None, (result.look_up(".tfrecord") for result in latest)), None) if marks else None
    if record is None:
        return TakenOver()
    try:
        files = lambda path: file_of(record, path, folder / EARLIER_FOLDER)  # noqa: E731
        taken = take_over(files, job.sources, parts, marks, folder, job.images_per_example)
    except PaliGemmaError as error:
        log.warning("nothing is taken over from run %s: %s", record.run, error.what)
        return TakenOver()
    log.info(
        "%s of %s rows are taken over from run %s, of %s of them the picture only",
        *(f"{count:,}" for count in (taken.lines + taken.pictures, sum(part.lines for part in parts))),
        record.run,
        f"{taken.pictures:,}",
    )
    return taken


def what_changed(record: MadeRecord, inputs: Inputs, marks: Mapping[str, str], images: int) -> str:
    """How the rows differ from those of earlier records, in words; empty if they are the same."""
    rows = [row for _, row in read_sources(inputs.sources, images) if isinstance(row, Row)]
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        try:
            return compare_rows(rows, lambda path: file_of(record, path, Path(folder)), marks)
        except PaliGemmaError as error:
            return f"the rows cannot be compared with the earlier ones: {error.what}"


def saw(parts: Sequence[LineRange], folder: Path, marks: Mapping[str, str]) -> bool:
    """Whether every image in the ranges in `folder` is what it was when it was marked, as far as marks tell.

    If one was replaced while the step worked, or since a killed attempt prepared it, the records are not those of the marks.
    """
    for seen in (seen for part in parts for seen in read_seen(part_file(folder, part, "images").read_bytes())) if marks else ():
        mark = marks.get(seen.image_file, "")
        if is_of_the_image(mark) and seen.mark != mark:
            log.warning("%r changed while this step worked, so no later run takes these records as they are", seen.image_file)
            return False
    return True


def work_folder(output: str, inputs: Inputs, settings: Mapping[str, Any]) -> Path:
    """The folder of finished shards until the records are done: beside the output, or in the cache folder for a prefix.

    It keeps the finished shards of a killed run with the same inputs and settings, and nothing else. Image files are assumed
    unchanged: hashing them all would be half the work.
    """
    folder = cache.work_folder(parse_location(output), "prepare")
    wanted = fingerprint(inputs, settings)
    known = folder / FINGERPRINT_FILE
    if kind_of(folder) not in (None, "folder") or (folder.is_dir() and any(folder.iterdir()) and not known.is_file()):
        raise InputError(
            "The folder for unfinished work holds something else.",
            where=folder,
            fix="remove it, or choose another --output",
        )
    folder.mkdir(parents=True, exist_ok=True)
    if known.is_file() and known.read_text() == wanted:
        if finished := len(list(folder.glob("*.facts"))):
            log.info("%d shards were finished by an earlier run (remove %s to begin anew)", finished, folder)
    else:
        write_file(known, b"")  # removed last, so that the folder stays recognizable
        clear(folder, but=FINGERPRINT_FILE)
        write_file(known, wanted.encode())
    return folder


def fingerprint(inputs: Inputs, settings: Mapping[str, Any]) -> str:
    """A hash of all that decides what becomes of a line, except image contents. Ranges with equal hashes belong together."""
    facts = {"image_size": inputs.image_size, "tokenizer": inputs.tokenizer_sha256, **settings}
    data = [[source.name, source.folder, source.images, file_sha256(source.file)] for source in inputs.sources]
    encoder = encoder_version(settings["compression"])
    return canonical_sha256({**facts, "data": data, "code": _code_sha256(), "encoder": encoder})


def job_of(inputs: Inputs, settings: Mapping[str, Any], folder: Path, web: Mapping[str, WebImage] | None = None) -> Job:
    """The job for each line. First unpacks gzip files into the folder."""
    return Job(
        sources=unpacked(inputs.sources, folder),
        tokenizer=inputs.tokenizer,
        image_size=inputs.image_size,
        max_text_tokens=settings["max_text_tokens"],
        over_long=settings["over_long"],
        compression=settings["compression"],
        grey_range=parse_grey_range(settings.get("grey_range", "")),
        web=web or {},
        images_per_example=images_of(settings),
    )


def unpacked(sources: Sequence[RowSource], folder: Path) -> list[RowSource]:
    """The same sources, with gzip files unpacked into the folder, unless they are there already."""
    plain = []
    for number, source in enumerate(sources):
        if is_gzip(source.file):
            data = folder / f"rows{number or ''}"
            if not data.is_file():
                unpack(source.file, data)
            source = replace(source, file=data)
        plain.append(source)
    return plain


def check_room(folder: Path, draft: Path, job: Job, parts: Sequence[LineRange]) -> None:
    """Confirms before any work that the shards fit on their disks, if all rows are kept.

    Raises:
        InputError: they do not fit; says how much room is needed.
    """
    if job.compression != "none":
        return  # their compression ratio is known only afterwards
    row = job.images_per_example * job.image_size**2 * 3 + 4 * job.max_text_tokens
    done = sum(path.stat().st_size for path in folder.glob("*.tfrecord"))
    whole = row * sum(part.lines for part in parts)
    check_space(folder, max(0, whole - done))
    if draft.stat().st_dev != folder.stat().st_dev:  # on one disk, shards are linked, not copied
        check_space(draft, whole)


def finish(
    inputs: Inputs,
    job: Job,
    parts: Sequence[LineRange],
    folder: Path,
    draft: Draft,
    split: str,
    max_reject_fraction: float,
    output: str,
) -> Dataset:
    """Fills the artifact's draft from the prepared ranges in `folder`.

    Raises:
        InputError: too many rows were rejected. The folder is removed then, because the user may change images next.
        StorageUnavailableError: it is because servers did not answer.
    """
    facts = gather_facts(parts, folder)
    other = _listing_of(inputs, job.images_per_example) if inputs.against else None
    mixture = []
    for number, source in enumerate(inputs.sources):
        # A source of a mixture may not be lost among the rows of others.
        of_source = gather_facts([part for part in parts if part.source == number], folder) if source.name else facts
        if not of_source.rows or of_source.reject_count > max_reject_fraction * of_source.lines:
            rejected = b"".join((folder / f"{part.number:05d}.rejected").read_bytes() for part in parts)
            shutil.rmtree(folder)
            raise _too_many_rejects(of_source, max_reject_fraction, source.data, output, rejected)
        if source.name:
            of = {"rows": of_source.rows, "rejected": of_source.reject_count, "weight": source.weight}
            mixture.append(SourceRows(name=source.name, **of))
    dataset = assemble(parts, folder, draft.folder, facts, job, split, inputs.tokenizer_sha256, other, mixture)
    if dataset.truncated:
        log.warning(
            "text_truncated: %d of %d rows had their suffix cut to fit --max-text-tokens %d",
            dataset.truncated,
            dataset.rows,
            job.max_text_tokens,
        )
    draft.rows, draft.hashes = dataset.rows, {shard.file: shard.sha256 for shard in dataset.shards}

    def page() -> str:
        stored = stored_pictures(parts, folder, job, lines_shown(facts))
        return render_report(dataset, facts, job, inputs.model, stored)

    write_page(draft.folder / "report.html", page)
    files = list_files(draft.folder, draft.hashes)
    draft.hashes |= {file.path: file.sha256 for file in files}
    write_croissant(draft.folder, dataset, files)
    return dataset


def _too_many_rejects(facts: Facts, most: float, data: str, output: str, rejected: bytes) -> PaliGemmaError:
    """The error that fails the step. Writes the whole list beside the output.

    It is one that running again may mend if there would be enough rows but for servers that did not answer.
    """
    kept = f"{str(output).rstrip('/')}.rejected.jsonl"
    write_file(kept, rejected)
    reasons = ", ".join(f"{count} {code}" for code, count in facts.rejected.most_common())
    shown = sorted(facts.rejects, key=lambda remark: remark.line)[:20]  # of one file
    first = "".join(f"\n    line {remark.line}: {remark.code}, {remark.message}" for remark in shown)
    may_answer = facts.rejected["image_unavailable"]
    enough = facts.rows + may_answer and facts.reject_count - may_answer <= most * facts.lines
    return (StorageUnavailableError if enough else InputError)(
        f"{facts.reject_count} of {facts.lines} rows were rejected ({reasons or 'the file is empty'}).{first}",
        where=data,
        expected=f"at least one usable row, and at most {most:.0%} rejected (--max-reject-fraction)",
        fix=f"see {kept} for every rejected line" + ("; run again when the servers answer" if enough else ""),
    )


def _listing_of(inputs: Inputs, images_per_example: int) -> Listing:
    """The rows of another split. For a JSONL file, images are compared only by their bytes, since none is decoded."""
    if exists(inputs.against, RECORD_FILE):
        return read_listing(open_records(inputs.against).folder / ROWS_FILE)
    data = localize(inputs.against)
    source = open_images(inputs.against_images, fetch_web_images(read_all_rows(data, images_per_example)))
    lines, rows, images, of_row = [], [], [], []
    for number, row in read_all_rows(data, images_per_example):
        if isinstance(row, Row):
            try:
                hashes = [hashlib.sha256(image.inline or source.read(image.name)).hexdigest() for image in row.images]
            except RowError:
                continue
            of_row += [len(lines)] * len(hashes)
            lines.append(number)
            rows.append(int(row_id(hashes, row.prefix, row.suffix)[:16], 16))
            images += [int(sha256[:16], 16) for sha256 in hashes]
    nothing = np.zeros((len(images), 2), np.uint64)
    numbers = (np.array(lines, np.int64), np.array(rows, np.uint64), np.array(images, np.uint64))
    return Listing(*numbers, nothing, nothing[:, 0], np.array(of_row, np.int64))


def _code_sha256() -> str:
    """Hash of the code that makes a shard: another version does not continue this one's work."""
    folder = Path(paligemma.data.__file__).parent
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*.py")}
    return canonical_sha256(files | {"pillow": PIL.__version__})
