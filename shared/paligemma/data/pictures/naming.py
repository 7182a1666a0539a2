"""Identifies a file by its first bytes, whatever its name says: as a decoded format, or another format in words.

Signatures come from the formats' own specifications, as collected in the `magic` files of file/file (`magic/Magdir/images`,
`jpeg`, `animation`, `sgml`) and in the list of brands at mp4ra.org/registered-types/brands.
"""

from __future__ import annotations

import re

from paligemma.data.image_suffixes import heif_is_read
from paligemma.data.pictures.errors import ImageError
from paligemma.extras import how_to_install

_PHOTO = "save it as JPEG or PNG"
_RAW = "develop it to JPEG or TIFF, e.g. with darktable, RawTherapee or dcraw"
_HEIC = (
    "convert it to JPEG (heif-convert IN.heic OUT.jpg; on a Mac, sips -s format jpeg IN.heic --out OUT.jpg), "
    f"or install pillow-heif ({how_to_install('heif')}), and it is read"
)

_DECODED = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHERS = (
    (b"8BPS", "a Photoshop document (PSD)", _PHOTO),
    (b"\xff\x0a", "a JPEG XL image", "convert it, e.g. with djxl IN.jxl OUT.png"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", "convert it, e.g. with djxl IN.jxl OUT.png"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", _PHOTO),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image", _PHOTO),
    (b"\xff\xd8", "a JPEG image that breaks off or is damaged in its first bytes", "fetch it again"),
    (b"\x89PN", "a PNG image whose first bytes are damaged, as by a transfer in text mode", "fetch it again"),
    (b"%PDF", "a PDF document", "draw its pages, e.g. with pdftoppm -png IN.pdf OUT"),
    (b"%!PS", "a PostScript document", "draw it to PNG"),
    (b"\xc5\xd0\xd3\xc6", "an EPS document", "draw it to PNG"),
    (b"FUJIFILMCCD-RAW", "a raw file of a Fujifilm camera (RAF)", _RAW),
    (b"IIU\0", "a raw file of a Panasonic camera (RW2)", _RAW),
    (b"IIRO", "a raw file of an Olympus camera (ORF)", _RAW),
    (b"IIRS", "a raw file of an Olympus camera (ORF)", _RAW),
    (b"MMOR", "a raw file of an Olympus camera (ORF)", _RAW),
    (b"\0MRM", "a raw file of a Minolta camera (MRW)", _RAW),
    (b"FOVb", "a raw file of a Sigma camera (X3F)", _RAW),
    (b"II\xbc", "a JPEG XR image", _PHOTO),
    (b"\0\0\1\0", "a Windows icon (ICO)", "save the size that you want as PNG"),
    (b"\0\0\2\0", "a Windows cursor (CUR)", "save the size that you want as PNG"),
    (b"icns", "an Apple icon (ICNS)", "save the size that you want as PNG"),
    (b"qoif", "a QOI image", _PHOTO),
    (b"DDS ", "a DirectDraw texture (DDS)", _PHOTO),
    (b"\x01\xda", "an SGI image", _PHOTO),
    (b"\x76\x2f\x31\x01", "an OpenEXR image", "convert it to TIFF"),
    (b"#?RADIANCE", "a Radiance HDR image", "convert it to TIFF"),
    (b"#?RGBE", "a Radiance HDR image", "convert it to TIFF"),
    (b"SIMPLE  =", "a FITS image", "convert it to TIFF"),
    (b"gimp xcf", "a GIMP document (XCF)", _PHOTO),
    (b"BPG\xfb", "a BPG image", _PHOTO),
    (b"P7\n", "a PAM image", _PHOTO),
    (b"PF\n", "a PFM image in colour", _PHOTO),
    (b"\x0a\x05\x01", "a PCX image", _PHOTO),
    (b"YUV4MPEG2", "a video", "extract its pictures, e.g. with ffmpeg"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)", "extract its pictures, e.g. with ffmpeg"),
    (b"\0\0\1\xba", "a video (MPEG)", "extract its pictures, e.g. with ffmpeg"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "a gzip file", "unpack it"),
    (b"BZh", "a bzip2 file", "unpack it"),
    (b"\xfd7zXZ\0", "an xz file", "unpack it"),
    (b"(\xb5/\xfd", "a Zstandard file", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "export its images"),
    (b"\x93NUMPY", "a NumPy array", "save it as PNG or TIFF"),
    (b"\x80\x04\x95", "a Python pickle", "export its images"),
    (b"SQLite format 3", "an SQLite database", "export its images"),
    (b"\x7fELF", "a program", "check the file's name"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", "draw it to PNG"),
    (b"AT&TFORM", "a DjVu document", "draw its pages to PNG"),
)
_BRANDS = {
    **dict.fromkeys(("avif", "avis"), "AVIF"),
    **dict.fromkeys(("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1", "msf1"), "HEIC"),
    "crx ": "a raw file of a Canon camera (CR3)",
    "jxl ": "a JPEG XL image",
    "jp2 ": "a JPEG 2000 image",
}
_POINTER = b"version https://git-lfs.github.com/spec/"
_DICOM_AT = 128
_SHOWN = 12


def recognize(data: bytes) -> str:
    """Pillow's name of the format that a file has; "HEIF" only if `pillow-heif` is installed.

    Raises:
        ImageError: the format is not decoded; says what it is, and what to do.
    """
    for signature, name in _DECODED:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(_TIFF):
        if data[8:10] == b"CR":
            raise _other("a raw file of a Canon camera (CR2)", _RAW)
        return "TIFF"
    if data[:1] == b"P" and (data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") or data[1:2] == b"f") and data[2:3].isspace():
        return "PPM"
    if data[4:8] == b"ftyp":
        return _of_brands(data)
    for signature, words, todo in _OTHERS:
        if data.startswith(signature):
            raise _other(words, todo)
    raise _other(*_in_words(data))


def _of_brands(data: bytes) -> str:
    """The format of an ISO base media file: its major brand decides, or for generic containers the first known compatible
    brand.
    """
    size = int.from_bytes(data[:4], "big")
    brands = [data[place : place + 4].decode("latin-1") for place in (8, *range(16, min(max(size, 12), 256, len(data)), 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    first = _BRANDS.get(brands[0])
    kind = first if first and brands[0] not in ("mif1", "msf1") else "AVIF" if "AVIF" in kinds else kinds[0] if kinds else None
    if kind == "AVIF":
        return "AVIF"
    if kind == "HEIC":
        if heif_is_read():
            return "HEIF"
        raise _other("a HEIC photo, as iPhones and other phones take them, whatever its name ends in", _HEIC)
    if kind:
        raise _other(kind, _RAW if "raw" in kind else _PHOTO)
    raise _other(f"a video or another file of the MP4 family (brand {brands[0]!r})", "extract its pictures, e.g. with ffmpeg")


def _in_words(data: bytes) -> tuple[str, str]:
    """What a file without a known signature seems to be, and what to do."""
    if not data:
        return "empty (0 bytes)", "fetch it again"
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes and nothing else, as an interrupted download or copy leaves", "fetch it again"
    if data.startswith(_POINTER):
        return "a Git LFS pointer and not the picture that it stands for", "run git lfs pull where it was cloned"
    if data[:4] == b"RIFF":
        return f"a RIFF file other than WebP ({data[8:12].decode('latin-1')!r})", _PHOTO
    if data[_DICOM_AT : _DICOM_AT + 4] == b"DICM":
        return "a DICOM file", "export its picture as PNG or TIFF of 16 bits"
    text = _text(data[:4096])
    if text is None:
        return f"not an image of a known format; it begins with {data[:_SHOWN].hex(' ')}", "check the file"
    start = text.lstrip("\ufeff \t\r\n")
    lower = start.lower()
    markup = re.sub(r"\A(<\?xml.*?\?>|<!--.*?-->|<!doctype [^>]*>|\s)*", "", lower, flags=re.DOTALL)
    if markup.startswith(("<svg", "<svg:svg")):
        return "an SVG drawing", "draw it to PNG, e.g. with rsvg-convert"
    if lower.startswith(("<!doctype html", "<html", "<head", "<body")) or markup.startswith("<html"):
        return "a web page (HTML), as servers send in place of a picture that they do not give", "fetch it again"
    if lower.startswith("<"):
        return "XML, often a server's error message", "look at it, and fetch the picture again"
    if re.match(r'[{\[]\s*["{}\[\]\d-]', start):
        return "JSON, often a server's error message", "look at it, and fetch the picture again"
    if lower.startswith("data:image/"):
        return "a data URI and not the picture in it", "decode its base64 first"
    if re.fullmatch(r"[A-Za-z0-9+/\r\n]{64,}={0,2}[\r\n]*", start):
        return "base64 text and not the picture in it", "decode it first"
    return f"text that begins with {start[:40]!r}, which is not an image of a known format", "check the file"


def _text(data: bytes) -> str | None:
    """The bytes as text, or None; the last character may be cut."""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(data) - 4:
            return None
        text = data[: error.start].decode(encoding)
    return text if text and all(character.isprintable() or character in "\t\r\n\f\ufeff" for character in text) else None


def _other(words: str, todo: str) -> ImageError:
    return ImageError("image_unreadable", f"The file is {words}: {todo}.")
