"""No picture takes a gibibyte or twenty seconds, whatever its file claims: each of `picture_attacks.py`, measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hostile.picture_attacks import ATTACKS

from conftest import ONE_DEVICE, REPOSITORY

MOST_MIB = 1024
MOST_MIB_OF_A_WORKER = 512
MOST_SECONDS = 20

HARMLESS = {
    "png_with_transparency_everywhere",
    "png_of_16_bit_grey",
    "png_with_packed_texts",
    "png_with_packed_xmp",
    "png_with_plain_texts",
    "png_with_a_packed_profile",
    "png_with_pixels_after_the_last",
    "png_animation_of_many_frames",
    "png_whose_exif_repeats_itself",
    "jpeg_with_1500_exif_segments",
    "jpeg_with_2000_profile_segments",
    "jpeg_with_40_megabytes_of_fill",
    "jpeg_with_photoshop_resources",
    "gif_with_40_megabytes_of_comment",
    "gif_of_100_000_frames",
    "tiff_whose_pages_are_a_circle",
    "tiff_whose_exif_is_its_own_directory",
    "tiff_of_100_000_pages",
    "webp_with_40_megabytes_of_exif",
    "ppm_as_text",
}
"""Those whose pixels can be had all the same: what surrounds them is left out."""


@pytest.fixture(scope="module")
def measured() -> dict[str, dict]:
    """What every attack took, all in one interpreter's forks."""
    command = [sys.executable, "-m", "hostile.picture_attacks"]
    environment = {**ONE_DEVICE, "PYTHONPATH": f"{REPOSITORY / 'shared'}:{REPOSITORY / 'tests'}"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {found["name"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_bounded_memory_and_time(measured: dict[str, dict], name: str) -> None:
    found = measured[name]
    assert found["fit"]["mib"] <= MOST_MIB_OF_A_WORKER, found
    for what in ("fit", "decode"):
        if what in found:
            assert found[what]["mib"] <= MOST_MIB, found
            assert found[what]["seconds"] <= MOST_SECONDS, found


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_decoded_or_refused_with_a_reason(measured: dict[str, dict], name: str) -> None:
    result = measured[name]["fit"]["result"]
    if isinstance(result[0], int):
        assert len(result) == 2
    else:
        assert result[0] in ("image_too_large", "image_unreadable"), result
        assert len(result[1]) < 400
    assert isinstance(result[0], int) or name not in HARMLESS, result


def test_there_are_as_many_attacks_as_were_asked_for() -> None:
    assert len(ATTACKS) >= 30
    assert set(ATTACKS) >= HARMLESS
