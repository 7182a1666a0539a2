"""Pictures in records: the same levels however they are stored, and no trust in what is stored."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, features

from paligemma.choices import Compression
from paligemma.data import stored_pictures
from paligemma.data.records import Dataset, Example, open_records
from paligemma.data.shards import ShardWriter
from paligemma.data.stored_pictures import encoder_version, pack_picture, unpack_picture
from paligemma.data.tf_dataset import import_tensorflow
from paligemma.data.tfrecord import RowReader
from paligemma.errors import DamagedError


def webp(width: int, height: int, mode: str = "RGB", **how) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "WEBP", **{"lossless": True, **how})
    return file.getvalue()


@pytest.fixture(params=["libwebp", "Pillow"])
def either_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes as where Pillow's library is found, or as where it is not."""
    assert stored_pictures._libwebp() is not None
    if request.param == "Pillow":
        monkeypatch.setattr(stored_pictures, "_libwebp", lambda: None)


def shape_of(stored: bytes, size: int, compression: Compression) -> tuple[int, ...] | None:
    """Of the picture; None if it is refused in words."""
    try:
        return unpack_picture(stored, size, compression).shape
    except ValueError:
        return None


@given(pixels=st.integers(1, 24).flatmap(lambda size: arrays.arrays(np.uint8, (size, size, 3))))
def test_every_way_keeps_every_level(pixels: np.ndarray) -> None:
    for compression in ("webp", "none", "gzip"):
        stored = pack_picture(pixels, compression)
        np.testing.assert_array_equal(unpack_picture(stored, len(pixels), compression), pixels)
        assert pack_picture(pixels.copy(), compression) == stored


def test_tensorflow_decodes_the_same_levels() -> None:
    """TensorFlow has a libwebp of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    pixels[:20] //= 64  # colours that an encoder may index
    decoded = import_tensorflow().io.decode_webp(pack_picture(pixels, "webp"), channels=3).numpy()
    np.testing.assert_array_equal(decoded, pixels[None])


def test_both_decoders_give_the_same_levels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (56, 56, 3), np.uint8)
    stored = pack_picture(pixels, "webp")
    decode = stored_pictures._libwebp()
    assert decode is not None
    for one in (decode, stored_pictures._by_pillow):
        np.testing.assert_array_equal(one(stored, 56), pixels)


def test_a_packed_picture_of_few_colours_takes_a_fraction() -> None:
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
    assert len(pack_picture(pixels, "webp")) < pixels.nbytes / 50


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (b"", "0 bytes"),
        (bytes(4 * 4 * 3), "not lossless WebP"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not lossless WebP"),
        (webp(4, 4, lossless=False), "not lossless WebP"),
        (webp(5, 4), "5 x 4 pixels, not 4 x 4"),
        (webp(16383, 1), "16383 x 1 pixels, not 4 x 4"),
        (webp(4, 4, "RGBA"), "is transparent"),
        (webp(4, 4)[:26], "cannot be decoded"),
        (webp(4, 4)[:25] + bytes(30), "cannot be decoded"),
    ],
)
@pytest.mark.usefixtures("either_decoder")
def test_what_is_no_picture_of_the_size_is_an_error_in_words(stored: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack_picture(stored, 4, "webp")


def test_a_picture_whose_header_lies_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 16384 x 16384 pixels makes a decoder ask for two gigabytes before it looks at the rest."""
    bomb = bytearray(webp(4, 4))
    struct.pack_into("<I", bomb, 21, 0x0FFFFFFF)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match="16384 x 16384 pixels"):
        unpack_picture(bytes(bomb), 4, "webp")


@pytest.mark.parametrize("compression", ["webp", "none"])
@given(stored=st.binary(max_size=60))
def test_any_bytes_are_a_picture_or_an_error_in_words(compression: Compression, stored: bytes) -> None:
    assert shape_of(stored, 3, compression) in ((3, 3, 3), None)


@pytest.mark.usefixtures("either_decoder")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 500), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_picture_of_the_size_or_an_error_in_words(place: int, value: int) -> None:
    stored = bytearray(pack_picture(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3), "webp"))
    stored[place % len(stored)] = value
    assert shape_of(bytes(stored), 12, "webp") in ((12, 12, 3), None)


def test_the_encoder_has_a_version_only_where_one_packs() -> None:
    assert encoder_version("webp") == f"libwebp {features.version('webp')}"
    assert encoder_version("none") == encoder_version("gzip") == ""


def test_a_row_without_its_picture_unpacks_none(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = RowReader(open_records(records))
    whole = reader.read(3)
    monkeypatch.setattr("paligemma.data.tfrecord.unpack_picture", lambda *_: pytest.fail("it was unpacked"))
    texts = reader.read_texts(3)
    assert (texts.image.shape, texts.suffix, texts.row_id) == ((0, 0, 3), whole.suffix, whole.row_id)
    np.testing.assert_array_equal(texts.tokens, whole.tokens)


def test_a_record_whose_picture_is_another_size_is_damaged(tmp_path: Path) -> None:
    """Its checksum is right, so nothing but the picture says so."""
    with ShardWriter(tmp_path / "a.tfrecord", "webp") as shard:
        shard.write(Example((webp(9, 9),), [2], [1], "p", "s", ("a.png",), ("0" * 64,), "1" * 64, 1))
    counts = {name: {} for name in ("rejected", "prefix_tokens", "suffix_tokens", "text_tokens")}
    dataset = Dataset(split="train", rows=1, truncated=0, image_size=8, max_text_tokens=9, tokenizer_sha256="0" * 64,
                      compression="webp", shards=[shard.shard], **counts)  # fmt: skip

    class Opened:
        location, shard_paths = tmp_path, [tmp_path / "a.tfrecord"]

    Opened.dataset = dataset  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DamagedError, match=r"(?s)9 x 9 pixels, not 8 x 8.*a\.tfrecord, row 0"):
        RowReader(Opened()).read(0)  # pyright: ignore[reportArgumentType]
