"""The VQ-VAE behind `<seg>` symbols: masks of 64 x 64 to sixteen codes, and codes to masks.

Sixteen codes stand for a 4 x 4 grid over the object's box, each the number of one of 128 vectors (arXiv 2301.02229). The
weights are big_vision's `vae-oid.npz`, with PyTorch's names and layouts. Encoder: google-research/big_vision,
`big_vision/pp/proj/paligemma/segmentation.py`, lines 61-69 and 90-161. Decoder: `big_vision/evaluators/proj/paligemma/
transfers/segmentation.py`, lines 157-265. Widths of the layers: SwinTransformer/AiT, `vae/models/VQVAE.py`, lines 241-271, and
`vae/configs/insseg/ait_insseg_vqvae.py`, lines 4-16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from paligemma.checkpoints.npz import read_npz
from paligemma.data.pictures.strips import STRIP_PIXELS, resize_strips
from paligemma.data.seg_masks import VECTORS, Decode
from paligemma.errors import DamagedError, InputError

CODES, GRID, SIDE = 16, 4, 64
"""Number of codes of a mask, side of their grid, and side of the mask in pixels."""

_WEIGHTS = "big_vision's vae-oid.npz, of gs://big_vision/paligemma"
_MOST_BYTES = 16 << 20
"""Largest array that is read; the published file's largest has 0.6 MB."""
_MOST_MASKS = 32
"""Masks that run at once. A batch is filled up to a power of two, so that six programs are compiled at most."""

_CODEBOOK = "_vq_vae._embedding"
_DOWNSAMPLINGS, _ENCODER_RESIDUALS, _TO_VECTORS = (0, 2, 4, 6), ("encoder.8.net", "encoder.9.net"), "encoder.10"
_FROM_VECTORS, _DECODER_RESIDUALS, _UPSAMPLINGS, _LAST = (
    "decoder.0",
    ("decoder.2.net", "decoder.3.net"),
    (4, 6, 8, 10),
    "decoder.12",
)
_TRANSPOSED = {f"decoder.{number}.weight" for number in _UPSAMPLINGS}

_convolution = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest")

Encode = Callable[[Float[np.ndarray, "m 64 64"]], Int[np.ndarray, "m 16"]]
Weights = Mapping[str, Array]


def read_encoder(path: str | Path) -> Encode:
    """The encoder from an `.npz` file. It maps masks with values from 0 to 1 (see `fit_mask`) to codes.

    Of two vectors at the same distance, that with the lower number is taken. Distances are computed in float32, so where two
    differ by less than its rounding, either may be taken; big_vision has the same freedom.

    Raises:
        InputError: there is no such file.
        DamagedError: the file has no encoder, or a weight is missing or has another shape.
    """
    names = [f"encoder.{number}" for number in _DOWNSAMPLINGS] + [*_parts(_ENCODER_RESIDUALS), _TO_VECTORS]
    weights = _read_weights(path, names, "mask encoder")
    _check(_encode, weights, jax.ShapeDtypeStruct((1, SIDE, SIDE), jnp.float32), (1, CODES), path, "mask encoder")
    return lambda masks: _in_batches(partial(_encode, weights), np.asarray(masks, np.float32), CODES)


def read_decoder(path: str | Path) -> Decode:
    """The decoder from an `.npz` file. It maps codes to masks, which are above 0 inside the object.

    Raises:
        InputError: there is no such file.
        DamagedError: the file is not a decoder, or a weight is missing or has another shape.
    """
    names = [_FROM_VECTORS, *_parts(_DECODER_RESIDUALS), *(f"decoder.{number}" for number in _UPSAMPLINGS), _LAST]
    weights = _read_weights(path, names, "mask decoder")
    _check(_decode, weights, jax.ShapeDtypeStruct((1, CODES), jnp.int32), (1, SIDE, SIDE), path, "mask decoder")
    return lambda codes: _in_batches(partial(_decode, weights), np.asarray(codes, np.int32), SIDE, SIDE)


def fit_mask(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "64 64"]:
    """The part of a mask inside its box, resized for the encoder: bilinear, with antialiasing, as TensorFlow resizes."""
    height, width = mask.shape
    rows = max(1, STRIP_PIXELS // width)
    strips = ((top, Image.fromarray(mask[top : top + rows].astype(np.float32))) for top in range(0, height, rows))
    return np.asarray(resize_strips(strips, "F", height, SIDE))


def _parts(blocks: tuple[str, ...]) -> list[str]:
    return [f"{block}.{number}" for block in blocks for number in (0, 2, 4)]


def _read_weights(path: str | Path, layers: list[str], what: str) -> Weights:
    if not Path(path).is_file():
        raise InputError(f"There is no {what}.", where=path, expected=_WEIGHTS)
    names = [_CODEBOOK, *(f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))]
    try:
        stored = read_npz(path)
        arrays = {name: stored[name] for name in names}
        for name, array in arrays.items():
            if np.prod(array.shape, dtype=object) * array.dtype.itemsize > _MOST_BYTES:
                raise ValueError(f"{name} is larger than {_MOST_BYTES:,} bytes")
        return {name: _arranged(name, array[...].astype(np.float32)) for name, array in arrays.items()}
    except KeyError as error:
        raise _unusable(what, f"it has no {error.args[0]}", path) from None
    except (InputError, DamagedError, ValueError, TypeError, IndexError) as error:
        raise _unusable(what, error.what.rstrip(".") if isinstance(error, InputError | DamagedError) else error, path) from None


def _arranged(name: str, values: np.ndarray) -> Array:
    """A kernel as [height, width, input, output], which takes half the time on a CPU. Other arrays are as they are.

    PyTorch's kernels are [output, input, height, width]; those of transposed convolutions are [input, output, height, width],
    and mirrored, so that they are convolutions over inputs with gaps.
    """
    if values.ndim != 4:
        return jnp.asarray(values)
    if name in _TRANSPOSED:
        return jnp.asarray(values[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))
    return jnp.asarray(values.transpose(2, 3, 1, 0))


def _check(
    network: Callable, weights: Weights, given: jax.ShapeDtypeStruct, made: tuple[int, ...], path: str | Path, what: str
) -> None:
    """Raises DamagedError unless the network can be computed and gives an array of that shape."""
    try:
        if weights[_CODEBOOK].ndim != 2 or len(weights[_CODEBOOK]) != VECTORS:
            raise ValueError(f"its codebook is not of {VECTORS} vectors")
        if (found := jax.eval_shape(network, weights, given).shape) != made:
            raise ValueError(f"it makes {found}, not {made}")
    except (ValueError, TypeError, IndexError) as error:
        raise _unusable(what, str(error).splitlines()[0].rstrip("."), path) from None


def _unusable(what: str, why: object, path: str | Path) -> DamagedError:
    return DamagedError(f"The {what} cannot be used: {why}.", where=path, expected=_WEIGHTS, fix="fetch it again")


def _in_batches(run: Callable[[Array], Array], inputs: np.ndarray, *shape: int) -> np.ndarray:
    found = [np.zeros((0, *shape), np.int32 if len(shape) == 1 else np.float32)]
    for start in range(0, len(inputs), _MOST_MASKS):
        batch = inputs[start : start + _MOST_MASKS]
        filling = (1 << (len(batch) - 1).bit_length()) - len(batch)
        filled = np.concatenate([batch, np.zeros((filling, *batch.shape[1:]), batch.dtype)])
        found.append(np.asarray(run(jnp.asarray(filled)))[: len(batch)])
    return np.concatenate(found)


@jax.jit
def _encode(weights: Weights, masks: Float[Array, "m 64 64"]) -> Int[Array, "m 16"]:
    x = 2 * (masks[..., None] - 0.5)
    for number in _DOWNSAMPLINGS:
        x = jax.nn.relu(_convolve(weights, f"encoder.{number}", x, stride=2))
    for name in _ENCODER_RESIDUALS:
        x = _residual(weights, name, x)
    vectors = weights[_CODEBOOK]
    grid = _convolve(weights, _TO_VECTORS, x).reshape(len(masks), -1, vectors.shape[1])
    # The square of the grid's own vector is the same for all entries, and left out: the nearest stays the nearest.
    products = jnp.einsum("mgc,vc->mgv", grid, vectors, precision="highest")
    return jnp.argmin((vectors**2).sum(1) - 2 * products, axis=2).astype(jnp.int32)


@jax.jit
def _decode(weights: Weights, codes: Int[Array, "m 16"]) -> Float[Array, "m 64 64"]:
    x = weights[_CODEBOOK][codes].reshape(len(codes), GRID, GRID, -1)
    x = jax.nn.relu(_convolve(weights, _FROM_VECTORS, x))
    for name in _DECODER_RESIDUALS:
        x = _residual(weights, name, x)
    for number in _UPSAMPLINGS:
        # A transposed convolution of stride 2 and padding 1: a convolution with the mirrored kernel over dilated inputs.
        kernel, bias = weights[f"decoder.{number}.weight"], weights[f"decoder.{number}.bias"]
        x = _convolution(x, kernel, window_strides=(1, 1), padding=[(2, 2)] * 2, lhs_dilation=(2, 2)) + bias
        x = jax.nn.relu(x)
    return _convolve(weights, _LAST, x)[..., 0]


def _convolve(weights: Weights, name: str, x: Float[Array, "m h w c"], stride: int = 1) -> Float[Array, "m i j d"]:
    """Padded as PyTorch pads the network: kernels of 4, 3 and 1 by a side of 1, 1 and 0."""
    kernel = weights[f"{name}.weight"]
    side = (kernel.shape[0] - 1) // 2
    return _convolution(x, kernel, window_strides=(stride, stride), padding=[(side, side)] * 2) + weights[f"{name}.bias"]


def _residual(weights: Weights, name: str, x: Float[Array, "m h w c"]) -> Float[Array, "m h w c"]:
    inner = jax.nn.relu(_convolve(weights, f"{name}.0", x))
    return x + _convolve(weights, f"{name}.4", jax.nn.relu(_convolve(weights, f"{name}.2", inner)))
