"""Surveys a TIFF or BigTIFF image: the first directory (TIFF 6.0, sections 2, 8, 19), and so the first page."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from PIL import TiffImagePlugin

from paligemma.data.pictures.errors import ImageError, unreadable
from paligemma.data.pictures.survey import MAX_PARTS, Grey, Survey

MAX_ENTRIES = 4096
"""Most tags of a directory."""

MAX_STRIPS = 200_000
"""Most strips or tiles of a picture: each takes some hundred bytes."""

_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _MIN, _MAX, _PLANAR = 273, 274, 277, 278, 280, 281, 284
_TILE_WIDTH, _TILE_LENGTH, _TILES, _SUBIFDS, _FORMAT = 322, 323, 324, 330, 339
_SMIN, _SMAX, _DNG, _CFA, _LINEAR_RAW = 340, 341, 50706, 32803, 34892
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q"}
_TYPE_BYTES = {2: 1, 5: 8, 7: 1, 10: 8, 18: 8} | {kind: struct.calcsize("=" + code) for kind, code in _TYPES.items()}
_READ = {_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _ROWS, _MIN, _MAX, _PLANAR,
         _TILE_WIDTH, _TILE_LENGTH, _FORMAT, _SMIN, _SMAX}  # fmt: skip
_MOST_VALUES = 64
_COLOURS, _MOST_COLOURS = 320, 3 << 16
_PROFILES = (700, 34675)  # XMP and ICC, which are bytes
_UNPACKED = {266, 282, 283, 296, 338, 347, 529, 530, 531, 532, _COLOURS, *_PROFILES}
"""Tags that Pillow parses as numbers, besides those that are read here."""
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_WHITE_IS_ZERO = 0

_BOTH = (b"II", b"MM")
_MORE_LAYOUTS = {
    **{(order, 0, (1,), 1, (12,), ()): ("I;16", "I;12") for order in _BOTH},
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"MM", 1, (1,), 1, (32,), ()): ("I", "I;32B"),
    (b"II", 0, (1,), 1, (32,), ()): ("I", "I;32N"),
    (b"MM", 0, (1,), 1, (32,), ()): ("I", "I;32B"),
    (b"II", 0, (2,), 1, (32,), ()): ("I", "I;32S"),
    (b"MM", 0, (2,), 1, (32,), ()): ("I", "I;32BS"),
    (b"II", 0, (2,), 1, (16,), ()): ("I", "I;16S"),
    (b"MM", 0, (2,), 1, (16,), ()): ("I", "I;16BS"),
    **{(b"II", photometric, (3,), 1, (64,), ()): ("F", "F;64F") for photometric in (0, 1)},
    **{(b"MM", photometric, (3,), 1, (64,), ()): ("F", "F;64BF") for photometric in (0, 1)},
}
"""Grey layouts that Pillow's decoders know and its table does not list."""


@dataclass(frozen=True)
class _Directory:
    values: dict[int, tuple]
    counts: dict[int, int]

    def number(self, tag: int, default: int = 0) -> int:
        """A tag's first value, as a whole number."""
        found = self.values.get(tag)
        return int(found[0]) if found else default


def survey_tiff(data: bytes) -> Survey:
    """Size, layout and range of samples, from the first directory."""
    for layout, modes in _MORE_LAYOUTS.items():
        TiffImagePlugin.OPEN_INFO.setdefault(layout, modes)
    tags = _read_directory(data)
    _refuse_raw(tags)
    width, height = tags.number(_WIDTH), tags.number(_LENGTH)
    bits, channels = tags.number(_BITS, 1), max(tags.number(_SAMPLES, 1), len(tags.values.get(_BITS, ())))
    kind = tags.number(_FORMAT, _UNSIGNED)
    strips = max(tags.counts.get(_STRIPS, 0), tags.counts.get(_TILES, 0))
    if strips > MAX_STRIPS:
        raise ImageError("image_too_large", f"The image has {strips:,} strips or tiles; {MAX_STRIPS:,} at most.")
    core = {1: 1, 2: 1, 4: 1, 8: 1, 12: 2, 16: 2}.get(bits, 4) if channels == 1 and kind != _SIGNED else 4
    packed = tags.number(_COMPRESSION, 1) != 1
    if tags.number(_PLANAR, 1) == 2 and channels > 1 and bits > 8 and not packed:
        raise unreadable(f"its {bits}-bit colours are in separate planes, not packed; save it with PlanarConfiguration 1")
    if bits in (16, 24) and kind == _FLOAT:
        raise unreadable(f"its samples are floats of {bits} bits; save it with 32")
    if bits > 32 and kind != _FLOAT:
        raise unreadable(f"its samples are integers of {bits} bits; save it with 32")
    if tags.number(_ORIENTATION, 1) in range(2, 9):
        core *= 2  # Pillow turns the whole picture
    grey = _grey(tags, bits, kind) if channels == 1 and (bits >= 8 or kind == _FLOAT) else None
    return Survey("TIFF", width, height, core, [data], extra_bytes=512 * strips + packed * _block_bytes(tags, bits, channels),
                  grey=grey, deep=channels > 1 and bits > 8)  # fmt: skip


def _block_bytes(tags: _Directory, bits: int, channels: int) -> int:
    """Unpacked size of a strip or tile in bytes: libtiff unpacks one at a time, some to four bytes a pixel."""
    width, height = tags.number(_WIDTH), tags.number(_LENGTH)
    if tags.counts.get(_TILES):
        width, height = tags.number(_TILE_WIDTH), tags.number(_TILE_LENGTH)
    else:
        height = min(tags.number(_ROWS, height) or height, height)
    jpeg = tags.number(_COMPRESSION, 1) in (6, 7)
    return width * height * max(channels * max(bits, 8) // 8, 4) * (3 if jpeg else 1)


def _grey(tags: _Directory, bits: int, kind: int) -> Grey:
    """The meaning of the samples: their kind's limits, and the file's range."""
    if kind == _FLOAT:
        low, high, limits = 0.0, 1.0, (float("-inf"), float("inf"))
    elif kind == _SIGNED:
        low, high, limits = 0, 2 ** min(bits - 1, 16) - 1, (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    else:
        low, high, limits = 0, 2 ** min(bits, 16) - 1, (0, 2**bits - 1)
    least, most = (
        next((tags.values[tag][0] for tag in pair if tags.values.get(tag)), None) for pair in ((_SMIN, _MIN), (_SMAX, _MAX))
    )
    if kind == _FLOAT and most is not None and (least or 0) < most:
        low, high = float(least or 0), float(most)
    elif kind != _FLOAT and most is not None and high >= most >= 255 and (int(most) + 1) & int(most) == 0:
        high = int(most)
    return Grey(low, high, limits, unsigned32=bits == 32 and kind == _UNSIGNED,
                white_is_zero=tags.values.get(_PHOTOMETRIC, (1,))[0] == _WHITE_IS_ZERO)  # fmt: skip


def _refuse_raw(tags: _Directory) -> None:
    """Refuses raw camera files: TIFFs whose first image is a thumbnail or raw sensor data."""
    words = None
    if tags.counts.get(_DNG):
        words = "a camera's raw file (DNG)"
    elif tags.number(_PHOTOMETRIC) in (_CFA, _LINEAR_RAW):
        words = "a camera's raw file"
    elif tags.number(_SUBFILE) & 1 and tags.counts.get(_SUBIFDS):
        words = (
            "a camera's raw file (such as NEF or ARW), or another TIFF whose first image is a thumbnail of the one that counts"
        )
    if words:
        todo = "develop it to JPEG or TIFF, e.g. with darktable, RawTherapee or dcraw"
        raise ImageError("image_unreadable", f"The file is {words}: {todo}.")


def _read_directory(data: bytes) -> _Directory:
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    head, entry, wide = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    try:
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (entries,) = struct.unpack_from(order + head, data, place)
        place += struct.calcsize(order + head)
        if entries > MAX_ENTRIES:
            raise ImageError("image_too_large", f"The image's directory has {entries:,} tags; {MAX_ENTRIES:,} at most.")
        values: dict[int, tuple] = {}
        counts: dict[int, int] = {}
        total = 0
        for _ in range(entries):
            tag, kind, count = struct.unpack_from(order + entry, data, place)
            at = place + struct.calcsize(order + entry)
            place = at + wide
            size = count * _TYPE_BYTES.get(kind, 1)
            total += size
            if tag in counts:
                continue
            counts[tag] = count
            if (
                tag in _UNPACKED
                and _TYPE_BYTES.get(kind, 1) > 1
                and count > (_MOST_COLOURS if tag == _COLOURS else _MOST_VALUES)
            ):
                raise unreadable(f"tag {tag} has {count:,} values")
            if size > wide:
                (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, at)
            if tag in _READ and kind in _TYPES:
                if count > _MOST_VALUES:
                    raise unreadable(f"tag {tag} has {count:,} values")
                values[tag] = struct.unpack_from(f"{order}{count}{_TYPES[kind]}", data, at)
    except struct.error:
        raise unreadable("the file ends inside its directory") from None
    if total > len(data) + MAX_PARTS:
        raise ImageError("image_too_large", f"The tags claim {total:,} bytes, of a file that has {len(data):,}.")
    return _Directory(values, counts)
