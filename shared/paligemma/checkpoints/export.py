"""Exports a model to another format, with adapters and trained parameters merged, streamed from file to file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from paligemma.artifacts.store import input_of, produce
from paligemma.checkpoints.huggingface.write import write_huggingface
from paligemma.checkpoints.merge import merged_arrays
from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open_checkpoint import CONFIG_FILE, open_model
from paligemma.checkpoints.quantized_files import write_quantized
from paligemma.checkpoints.tokenizer_file import TOKENIZER_FILE
from paligemma.choices import ExportDtype, ModelFormat
from paligemma.errors import InputError
from paligemma.models.weight_formats import QuantizeConfig
from paligemma.storage.disk_space import check_space


def export(model: str | Path, output: str | Path, format: ModelFormat, dtype: ExportDtype = "stored", base: str = "") -> None:
    """Writes a checkpoint, or a tuned model merged with its base, as an artifact of the type `checkpoint`.

    Args:
        model: anything that `paligemma.load` takes.
        output: a folder, or a `gs://` prefix.
        format: big_vision's `checkpoint.npz` or a Hugging Face folder, either with configuration and tokenizer.
        dtype: dtype of every parameter; `stored` keeps the base's dtype for the base's parameters and float32 for trained ones.
            `int8` and `nf4` quantize weights, in files with big_vision's names: see `quantized_files`.
        base: a tuned model's base, if it has moved since training.

    Raises:
        InputError: there is no such model, a value is too large for the dtype, or transformers cannot read it.
        DamagedError: a file is incomplete or altered, or the base is not the model's.
    """
    kind = dtype if dtype == "int8" or dtype == "nf4" else None
    if kind and format == "huggingface":
        raise InputError(
            f"transformers does not read {kind} weights as they are written here.",
            where="--dtype",
            expected="a float dtype for the format huggingface",
            fix="--format big_vision, or a float dtype and a quantizer of transformers on what is exported",
        )
    checkpoint, tuned = open_model(model, base=base or None)
    if tuned is None:  # a tuned model's base is hashed already
        checkpoint.verify()
    arrays = checkpoint.arrays if tuned is None else merged_arrays(checkpoint.arrays, tuned)
    inputs = [input_of("checkpoint", checkpoint.location)]
    if tuned is not None:
        inputs.append(input_of("tuned model", model))
    quantize = QuantizeConfig()
    cast = _caster(quantize.others if kind else dtype)
    size = sum(math.prod(array.shape) * cast(name, np.empty(0, array.dtype)).itemsize for name, array in arrays.items())
    with produce(output, "checkpoint", "export", {"format": format, "dtype": dtype}, inputs) as draft:
        check_space(draft.folder, size)
        if format == "huggingface":
            write_huggingface(draft.folder, checkpoint.config, arrays, cast, checkpoint.tokenizer)
            return
        if kind:
            write_quantized(draft.folder, arrays, kind, quantize, cast)
        else:
            names = sorted(arrays)  # below params/, as in the published files
            write_npz(
                draft.folder / "checkpoint.npz",
                ((f"params/{name}", arrays[name]) for name in names),
                lambda name, values: cast(name.removeprefix("params/"), values),
            )
        (draft.folder / CONFIG_FILE).write_text(json.dumps(checkpoint.config.model_dump(), indent=2) + "\n")
        if checkpoint.tokenizer is not None:
            shutil.copyfile(checkpoint.tokenizer, draft.folder / TOKENIZER_FILE)


def _caster(dtype: ExportDtype) -> Callable[[str, np.ndarray], np.ndarray]:
    """The function that converts a block of a named parameter's values for writing."""

    def cast(name: str, values: np.ndarray) -> np.ndarray:
        wanted = values.dtype if dtype == "stored" else np.dtype(dtype)
        if values.dtype == wanted:
            return values
        with np.errstate(over="ignore"):
            result = values.astype(wanted)
        if not np.isfinite(result).all() and np.isfinite(values).all():
            raise InputError(
                f"{name} has values that {dtype} cannot hold.",
                expected=f"none beyond {ml_dtypes.finfo(wanted).max}",
                fix="export with --dtype bfloat16 or float32",
            )
        return result

    return cast
