"""KGeography's maps: which colour is which division, what it is called in every language, its capital and its flag.

A `.kgm` file is XML: a picture, and divisions with their colour in it (source: KDE's kgeography, `src/mapparser.cpp`). Names
are translated in the message catalogues of the package, with the map file's name as context.
"""

from __future__ import annotations

import gettext
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

MAPS, CATALOGUES = "usr/share/kgeography", "usr/share/locale"


def split_of(name: str) -> str:
    """`val` for a quarter of all names, always the same ones, and `train` for the others."""
    return "val" if zlib.crc32(name.encode()) % 4 == 0 else "train"


@dataclass(frozen=True)
class Division:
    """A part of a map.

    Attributes:
        name, capital: in English; the capital may be empty.
        flag: the flag's file, relative to the folder of maps; empty without one.
        is_ground: it is none of the map's divisions, but water, a border, or a neighbour.
        colour: red, green and blue in one number.
    """

    name: str
    capital: str
    flag: str
    is_ground: bool
    colour: int


@dataclass(frozen=True)
class Map:
    """A map; `context` is what its names have in the catalogues, `kind` what its divisions are called, as `Departments`."""

    context: str
    picture: Path
    name: str
    kind: str
    divisions: tuple[Division, ...] = field(repr=False)

    @property
    def parts(self) -> list[Division]:
        """The divisions that are asked about."""
        return [division for division in self.divisions if not division.is_ground]

    @cached_property
    def colours(self) -> np.ndarray:
        """The picture, [height, width], a colour as one number."""
        pixels = np.asarray(Image.open(self.picture).convert("RGB"), np.uint32)
        return pixels @ np.array([1 << 16, 1 << 8, 1], np.uint32)


class Geography:
    """All maps and all translations below the folder that the package was unpacked to."""

    def __init__(self, package: Path) -> None:
        self.folder = package / MAPS
        self.maps = [_read_map(path, self.folder) for path in sorted(self.folder.glob("*.kgm"))]
        catalogues = sorted((package / CATALOGUES).glob("*/LC_MESSAGES/kgeography.mo"))
        self._catalogues = {path.parts[-3]: _read_catalogue(path) for path in catalogues}

    @property
    def languages(self) -> list[str]:
        """Codes such as `pt_BR` and `ca@valencia`."""
        return list(self._catalogues)

    def translations(self, of: Map, name: str) -> dict[str, str]:
        """What a name of a map is in every language that has a word for it."""
        found = {language: words.pgettext(of.context, name) for language, words in self._catalogues.items()}
        return {language: text for language, text in found.items() if text != name}


def _read_map(path: Path, folder: Path) -> Map:
    root = ElementTree.parse(path).getroot()
    divisions = tuple(_read_division(element, path, folder) for element in root.iter("division"))
    kind = root.findtext("divisionsName", "Divisions")
    return Map(path.name, folder / root.findtext("mapFile", ""), root.findtext("name", ""), kind, divisions)


def _read_division(element: ElementTree.Element, path: Path, folder: Path) -> Division:
    red, green, blue = (int(element.findtext(f"color/{part}", "0")) for part in ("red", "green", "blue"))
    flag = element.findtext("flag", "")
    places = [place for place in (f"flags/{flag}", f"flags/{path.stem}/{flag}") if flag and (folder / place).is_file()]
    is_ground = element.findtext("ignore") == "yes"  # other values leave divisions out of some of KGeography's games only
    name, capital = (element.findtext(tag, "").strip() for tag in ("name", "capital"))
    return Division(name, capital, "".join(places[:1]), is_ground, (red << 16) + (green << 8) + blue)


def _read_catalogue(path: Path) -> gettext.GNUTranslations:
    with path.open("rb") as file:
        return gettext.GNUTranslations(file)
