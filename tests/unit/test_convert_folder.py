"""`paligemma convert folder`: labels are the folders' names, and everything that is no picture is counted."""

from __future__ import annotations

from pathlib import Path

from converting import run_convert
from PIL import Image

from paligemma.data.image_suffixes import SUFFIXES
from paligemma.data.images import FORMATS


def test_a_folder_of_labels(tmp_path: Path) -> None:
    names = [
        "cat/1.jpg",
        "dog/big/2.PNG",
        "dog/3.jfif",
        "dog/notes.txt",
        "dog/4.heic",
        "dog/5.HEIC",
        "dog/LICENSE",
        "6.jpg",
        "a.md",
    ]
    hidden = ["cat/.ipynb_checkpoints/1-checkpoint.jpg", "__MACOSX/cat/._1.jpg", "cat/Thumbs.db", ".git/x.png", "cat/.7.jpg"]
    for name in names + hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for _ in range(2):  # what the first run wrote is none of the folder's files
        done = run_convert(tmp_path / "rows.jsonl", "folder", "--folder", tmp_path, limit=0.1)
        assert [(row["image"], row["suffix"]) for row in done.rows] == [
            ("cat/1.jpg", "cat"),
            ("dog/3.jfif", "dog"),
            ("dog/big/2.PNG", "big"),
        ]
        assert [(entry["place"], entry["code"]) for entry in done.skipped] == [
            ("6.jpg", "label_missing"),
            ("dog/4.heic", "format_other"),
            ("dog/5.HEIC", "format_other"),
            ("dog/LICENSE", "format_other"),
            ("dog/notes.txt", "format_other"),
        ]
        for words in (
            "3 rows",
            "8 files read: 3 used, 5 skipped",
            "2 files left out that end in .heic",
            "1 files left out that end in .txt",
            "1 files left out that have no ending",
            "5 hidden_left_out",
        ):
            assert words in done.words


def test_a_folder_without_labels_and_none_at_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    done = run_convert(tmp_path / "rows.jsonl", "folder", "--folder", tmp_path)
    assert done.exit_code == 2
    assert "The 1 pictures are in no folders of labels" in done.words
    assert f"--images {tmp_path} --image COLUMN" in done.words
    assert run_convert(tmp_path / "rows.jsonl", "folder", "--folder", tmp_path / "no").exit_code == 2


def test_links_to_folders_are_named_and_names_that_are_not_text_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/cat/1.png").write_bytes(b"")
    (tmp_path / "photos/dog").symlink_to(tmp_path / "photos/cat")
    with open(b"%s/photos/cat/\xe9.png" % bytes(tmp_path), "wb"):
        pass
    done = run_convert(tmp_path / "rows.jsonl", "folder", "--folder", tmp_path / "photos")
    assert [row["image"] for row in done.rows] == ["cat/1.png"]
    assert done.codes == ["encoding_invalid"]
    assert "1 link_left_out" in done.words
    assert f"pass --images {tmp_path / 'photos'} to prepare_data" in done.words


def test_endings_are_those_of_every_format_that_is_decoded() -> None:
    Image.init()
    assert {ending for ending, name in Image.registered_extensions().items() if name in FORMATS} | {".mpo"} == SUFFIXES
