"""Checks all inputs of a run before its first step starts: an error costs seconds here, but hours later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from components.publish.formats import parse_formats
from paligemma.artifacts.record import canonical_sha256, file_sha256
from paligemma.artifacts.store import localize
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.sources.fetch import check_sources
from paligemma.checkpoints.tokenizer_file import PUBLISHED_ROWS
from paligemma.data.image_source import open_images, split_archive
from paligemma.data.pictures.levels import parse_grey_range
from paligemma.data.rows import Row, RowError, read_all_rows
from paligemma.data.source_list import Source, parse_sources, short_names, sources_text
from paligemma.data.split import SplitFile, split_files
from paligemma.decoding.settings_yaml import parse_settings
from paligemma.errors import InputError
from paligemma.evaluation.metrics import find_metric
from paligemma.evaluation.tasks import TASKS
from paligemma.preflight.targets import find_target
from paligemma.registry.releases import read_champion
from paligemma.safe_names import parse_sha256
from paligemma.storage.disk_space import parse_bytes
from paligemma.storage.files import is_file
from paligemma.storage.folders import is_folder, kind_of
from paligemma.storage.location import SCHEME, Location, parse_location
from paligemma.training.open_recipe import parse_open_recipe
from paligemma.training.recipe import Recipe, check_images

_LOOKED_AT = 100
"""Rows of each file whose form and image are checked; prepare_data checks all."""


def check_run(parameters: Mapping[str, object]) -> list[str]:
    """Checks every path, key and parameter of the pipeline, local or on `gs://`.

    Args:
        parameters: parameters of `finetune_pipeline` by name.

    Returns:
        Warnings that do not prevent a run.

    Raises:
        InputError: names the first wrong flag.
        DamagedError: an existing file is incomplete.
    """
    given = {name: str(value) for name, value in parameters.items()}
    recipe = parse_open_recipe(given["recipe"]).recipe
    check_images(recipe, int(given["images_per_example"]), "the parameter images_per_example")
    parse_settings(given["decoding"], "the parameter decoding")
    find_target(given["target"])
    parse_grey_range(given["grey_range"])
    parse_formats(given["formats"])
    if given["disk_budget"]:
        parse_bytes(given["disk_budget"], "--disk-budget")
    if given["sha256"]:
        parse_sha256(given["sha256"].lower(), "The expected hash", where="--sha256")
    for flag in ("train_data", "validation_data"):
        for source in _sources(given, flag):
            _expect_file(source.data, _flag(flag), "a JSONL file")
    check_sources(given["source"], given["sha256"])
    if given["tokenizer"]:
        _expect(given["tokenizer"], "--tokenizer", "a SentencePiece model, or a folder with one")
    _check_checkpoint(given["source"], given["tokenizer"], int(given["image_size"] or 0))
    if given["mask_decoder"]:
        _expect_file(given["mask_decoder"], "--mask-decoder", "big_vision's vae-oid.npz, of gs://big_vision/paligemma")
    decoder = str(localize(given["mask_decoder"])) if given["mask_decoder"] else ""
    for name in [name.strip() for name in given["metrics"].split(",") if name.strip()] or TASKS[given["task"]].metrics:
        find_metric(name, decoder)
    for flag in ("artifact_root", "registry"):
        if given[flag]:
            _expect_place(given[flag], _flag(flag))
    if given["registry"]:
        read_champion(given["registry"])
    return [*_check_rows(given), *_too_few_rows(_sources(given, "train_data"), recipe)]


def split_data(parameters: Mapping[str, object], root: Path, fraction: float) -> dict[str, str]:
    """Splits the training data by image, for a run without validation data. The same data give the same files.

    Args:
        parameters: the pipeline's checked parameters.
        root: the folder of all runs; the files go to `data` in it.
        fraction: share of the images for validation.

    Returns:
        The changed parameters: both files, or the sources of both mixtures, and the folder that image names are relative to.

    Raises:
        InputError: there are fewer than two images.
    """
    sources = parse_sources(str(parameters["train_data"]), "--train-data")
    folders = [source.images or str(parameters["images"] or parse_location(source.data).parent) for source in sources]
    files = [localize(source.data) for source in sources]
    hashes = [file_sha256(file) for file in files]
    sha256 = hashes[0] if len(hashes) == 1 else canonical_sha256(hashes)
    folder = root.absolute() / "data" / f"{Path(sources[0].data).name.split('.')[0]}-{sha256[:12]}-{fraction:g}"
    split = [
        SplitFile(file, place if isinstance(place := parse_location(images), Path) else None, *_split_into(folder, name))
        for file, images, name in zip(files, folders, short_names([source.data for source in sources]), strict=True)
    ]
    counts = split_files(split, fraction, int(str(parameters["images_per_example"])))
    if len(sources) == 1:
        return {"train_data": str(split[0].train), "validation_data": str(split[0].validation), "images": folders[0]}
    train, validation = [], []
    for source, file, images, (_, held) in zip(sources, split, folders, counts, strict=True):
        train.append(replace(source, data=str(file.train), images=images))
        validation += [Source(str(file.validation), images)] * bool(held)
    return {"train_data": sources_text(train), "validation_data": sources_text(validation)}


def _split_into(folder: Path, name: str) -> tuple[Path, Path]:
    """The files that a file is split into; `name` tells it from the other files, and is empty if there are none."""
    if not name:
        return folder / "train.jsonl", folder / "validation.jsonl"
    return folder / "train" / name, folder / "validation" / name


def _sources(given: Mapping[str, str], flag: str) -> tuple[Source, ...]:
    return parse_sources(given[flag], _flag(flag), weights=flag == "train_data")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_checkpoint(source: str, tokenizer: str, image_size: int) -> None:
    """Opens a local checkpoint without reading its weights."""
    if "://" in source or "," in source:
        return
    checkpoint = open_checkpoint(source)
    if checkpoint.tokenizer_file is None and not tokenizer and checkpoint.config.llm.vocab_size != PUBLISHED_ROWS:
        fix = "pass --tokenizer"
        raise InputError("There is no tokenizer.model, and no tokenizer.json.", where=checkpoint.weights.parent, fix=fix)
    patch = checkpoint.config.img.patch_size
    if image_size % patch:
        near = f"{image_size // patch * patch or patch} or {(image_size // patch + 1) * patch}"
        raise InputError(
            f"The model cannot see pictures of {image_size} pixels.",
            where="--image-size",
            expected=f"a multiple of {patch}, the side of its patches",
            fix=f"take {near}, or leave it out for the checkpoint's {checkpoint.config.img.image_size}",
        )


def _check_rows(given: Mapping[str, str]) -> Iterator[str]:
    """Refuses a file whose first rows are all unusable; warns if some are."""
    for flag, source in [(name, one) for name in ("train_data", "validation_data") for one in _sources(given, name)]:
        data, images = source.data, source.images or given["images"] or str(parse_location(source.data).parent)
        folder = parse_location(images)
        if isinstance(folder, Path):
            open_images(folder)
        else:
            _expect(images, "--images", "a prefix with images")
        seen, faults = 0, []
        for number, row in read_all_rows(localize(data), int(given["images_per_example"])):
            seen += 1
            if (fault := _fault(row, folder)) is not None:
                faults.append(f"line {number}: {fault}")
            if seen == _LOOKED_AT:
                break
        if seen and len(faults) < seen:
            if faults:
                of = f" of {data}" if len(_sources(given, flag)) > 1 else ""
                yield f"{_flag(flag)}: {len(faults)} of the first {seen} rows{of} cannot be used, e.g. {faults[0]}"
            continue
        only_images = seen and all("image_missing" in fault for fault in faults)
        raise InputError(
            f"None of the first {seen} rows can be used; {faults[0]}" if seen else "The file has no rows.",
            where=f"{_flag(flag)} {data}",
            expected='lines {"image": "file", "prefix": "question", "suffix": "answer"}',
            fix=f"images are looked for in {images}; --images names another folder"
            if only_images
            else "make it with paligemma convert",
        )


def _fault(row: Row | RowError, folder: Location) -> str | None:
    if isinstance(row, RowError):
        return f"{row.code}, {row.message}"
    for image in row.images:
        # prepare_data looks into archives. On gs:// and the web, a request per image would take longer than the whole step.
        if image.address or image.inline is not None or image.name.startswith(SCHEME):
            continue
        if isinstance(folder, Path) and not (folder / (split_archive(image.name)[0] or image.name)).is_file():
            return f"image_missing, there is no {image.name!r}"
    return None


def _too_few_rows(sources: Sequence[Source], recipe: Recipe) -> Iterator[str]:
    rows = 0
    for rows, _ in enumerate((row for source in sources for row in read_all_rows(localize(source.data))), 1):
        if rows == recipe.batch_size:
            return
    yield f"the recipe's batch_size is {recipe.batch_size}, the training data has {rows} rows: a step sees rows several times"


def _expect(location: str, flag: str, expected: str) -> None:
    parsed = parse_location(location)
    if not (is_file(parsed) or is_folder(parsed)):
        raise InputError(f"There is no {location}.", where=flag, expected=expected, fix=_look_in(parsed))


def _expect_file(location: str, flag: str, expected: str) -> None:
    parsed = parse_location(location)
    _expect(location, flag, expected)
    if is_folder(parsed):
        raise InputError(f"{location} is a folder.", where=flag, expected=expected, fix="name the file in it")


def _expect_place(location: str, flag: str) -> None:
    """Confirms that a folder is writable or can be created, or that a bucket exists."""
    parsed = parse_location(location)
    if isinstance(parsed, Path):
        above = next(folder for folder in (parsed, *parsed.parents) if folder.exists())
        if not above.is_dir():
            raise InputError(f"{above} is a file.", where=flag, expected="a folder, or one that can be made")
        return
    kind_of(parsed)


def _look_in(location: Location) -> str:
    if not isinstance(location, Path):
        return "check bucket and name"
    above = next(folder for folder in location.parents if folder.is_dir())
    names = sorted(entry.name for entry in above.iterdir() if not entry.name.startswith("."))[:5]
    return f"{above} has {', '.join(names) or 'nothing'}"
