"""Mistakes of a first evening, and what the user sees: each message says what, where, what was expected and what to do.

All are made in this process, in a folder with six photos and a table. A run's mistakes are found before its first step.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from conftest import SmallData
from paligemma.errors import PaliGemmaError
from pipelines.cli import app

RUN = "pipeline run --source embedded:tiny --train-data rows.jsonl --validation-data rows.jsonl --root new"


class Mistake(NamedTuple):
    """A command, the exit code, and the whole message; HERE stands for the folder."""

    command: str
    exit_code: int
    says: str


MISTAKES = [
    Mistake(
        "pipeline run --train-data rows.jsonl --validation-data rows.jsonl --root new",
        2,
        """No model is named.
  where:    --source
  expected: hf://google/paligemma2-3b-pt-224, kaggle://..., gs://..., a checkpoint's file or folder, or embedded:tiny
  to do:    add --source, e.g. --source runs/paligemma-3b; --source embedded:tiny is the demo's toy of 1.2 million \
parameters
""",
    ),
    Mistake(
        "RUN --train-data row.jsonl",
        2,
        """There is no HERE/row.jsonl.
  where:    --train-data
  expected: a JSONL file
  to do:    HERE has broken.png, elsewhere.jsonl, empty.jsonl, gone.jsonl, photos
""",
    ),
    Mistake(
        "RUN --validation-data photos",
        2,
        """HERE/photos is a folder.
  where:    --validation-data
  expected: a JSONL file
  to do:    name the file in it
""",
    ),
    Mistake(
        "RUN --train-data empty.jsonl",
        2,
        """The file has no rows.
  where:    --train-data HERE/empty.jsonl
  expected: lines {"image": "file", "prefix": "question", "suffix": "answer"}
  to do:    make it with paligemma convert
""",
    ),
    Mistake(
        "RUN --train-data prose.jsonl",
        2,
        """None of the first 1 rows can be used; line 1: json_invalid, Expecting value at character 1 of the line
  where:    --train-data HERE/prose.jsonl
  expected: lines {"image": "file", "prefix": "question", "suffix": "answer"}
  to do:    make it with paligemma convert
""",
    ),
    Mistake(
        "RUN --train-data elsewhere.jsonl",
        2,
        """None of the first 6 rows can be used; line 1: image_missing, there is no 'no/photos/IMG_0.png'
  where:    --train-data HERE/elsewhere.jsonl
  expected: lines {"image": "file", "prefix": "question", "suffix": "answer"}
  to do:    images are looked for in HERE; --images names another folder
""",
    ),
    Mistake(
        "RUN --images fotos",
        2,
        """There is no image folder HERE/fotos.
  to do:    check --images
""",
    ),
    Mistake(
        "RUN --source runs/paligemma-3b",
        2,
        """There is no checkpoint file or folder HERE/runs/paligemma-3b.
  where:    --source
  expected: an existing path, kaggle://, hf://, gs://, https://, or embedded:tiny
  to do:    check the path
""",
    ),
    Mistake(
        "RUN --source photos",
        2,
        """The folder HERE/photos holds no weights under a name that is looked for.
  expected: one .npz file, one called checkpoint.npz or ckpt.npz or model.npz, or Hugging Face's \
model.safetensors.index.json or model.safetensors
  to do:    check the path
""",
    ),
    Mistake(
        "RUN --source hf:/google/paligemma2-3b-pt-224",
        2,
        """There is no checkpoint file or folder HERE/hf:/google/paligemma2-3b-pt-224.
  where:    --source
  expected: an existing path, kaggle://, hf://, gs://, https://, or embedded:tiny
  to do:    write hf:// with two slashes
""",
    ),
    Mistake(
        "RUN --source hf://paligemma2-3b-pt-224",
        2,
        """'hf://paligemma2-3b-pt-224' is not a model on Hugging Face.
  expected: hf://owner/name or hf://owner/name@revision
""",
    ),
    Mistake(
        "RUN --source kaggle://google/paligemma",
        2,
        """'kaggle://google/paligemma' names no version of a Kaggle model.
  expected: kaggle://owner/model/framework/variation/version, e.g. kaggle://google/paligemma/jax/paligemma-3b-pt-224/1
""",
    ),
    Mistake(
        "RUN --source https://example.org/checkpoint.npz",
        2,
        """The sha256 of https://example.org/checkpoint.npz is not given.
  where:    --sha256
  expected: 64 hexadecimal digits: nothing else says that it is the right file
  to do:    pass --sha256
""",
    ),
    Mistake(
        "RUN --tokenizer paligemma_tokenizer.model",
        2,
        """There is no HERE/paligemma_tokenizer.model.
  where:    --tokenizer
  expected: a SentencePiece model, or a folder with one
  to do:    HERE has broken.png, elsewhere.jsonl, empty.jsonl, gone.jsonl, photos
""",
    ),
    Mistake(
        "RUN --recipe recipe.yaml",
        2,
        """The recipe is wrong: stepz: unknown key, did you mean 'steps'?.
  where:    recipe.yaml
""",
    ),
    Mistake(
        "RUN --recipe demmo",
        2,
        """There is no recipe 'demmo'.
  where:    --recipe
  expected: a YAML file, or a preset's name
  to do:    did you mean 'demo'?
""",
    ),
    Mistake(
        "RUN --set learning_rate=fast",
        2,
        """The recipe is wrong: learning_rate: Input should be a valid number, unable to parse string as a number.
  where:    --set learning_rate=fast
""",
    ),
    Mistake(
        "RUN --target l44",
        2,
        """There is no target 'l44'.
  where:    --target
  to do:    did you mean 'l4-4'?
""",
    ),
    Mistake(
        "RUN --metrics exact_mach",
        2,
        """There is no metric 'exact_mach'.
  expected: did you mean 'exact_match'?, or module:function
""",
    ),
    Mistake(
        "RUN --task segment",
        2,
        """Masks need the weights that turn <seg> symbols into pixels.
  expected: --mask-decoder vae-oid.npz
  to do:    fetch gs://big_vision/paligemma/vae-oid.npz
""",
    ),
    Mistake(
        "RUN --mask-decoder vae.npz",
        2,
        """There is no HERE/vae.npz.
  where:    --mask-decoder
  expected: big_vision's vae-oid.npz, of gs://big_vision/paligemma
  to do:    HERE has broken.png, elsewhere.jsonl, empty.jsonl, gone.jsonl, photos
""",
    ),
    Mistake(
        "RUN --formats safetensors",
        2,
        """There is no format 'safetensors'.
  where:    --formats
  to do:    one of: big_vision, huggingface
""",
    ),
    Mistake(
        "RUN --image-size 33",
        2,
        """The model cannot see pictures of 33 pixels.
  where:    --image-size
  expected: a multiple of 8, the side of its patches
  to do:    take 32 or 40, or leave it out for the checkpoint's 32
""",
    ),
    Mistake(
        "RUN --grey-range 4095",
        2,
        """The grey range is '4095'.
  expected: LOW,HIGH: the samples that are black and white, two numbers, the first less than the second
  to do:    of 12-bit pictures, pass --grey-range 0,4095
""",
    ),
    Mistake(
        "RUN --registry rows.jsonl",
        2,
        """HERE/rows.jsonl is a file.
  where:    --registry
  expected: a folder, or one that can be made
""",
    ),
    Mistake(
        "RUN --artifact-root rows.jsonl/x",
        2,
        """HERE/rows.jsonl is a file.
  where:    --artifact-root
  expected: a folder, or one that can be made
""",
    ),
    Mistake(
        "RUN --sha256 12",
        2,
        """The expected hash cannot be used: it is not 64 hexadecimal digits in lower case: '12'.
  where:    --sha256
  expected: 64 hexadecimal digits
""",
    ),
    Mistake(
        "generate --image photos/IMG_0.png --prompt ocr",
        2,
        """No model is named.
  where:    --model
  expected: a tuned model's folder, gs://..., a checkpoint's file or folder, or embedded:tiny
  to do:    add --model, e.g. --model runs/paligemma-3b; --model embedded:tiny is the demo's toy of 1.2 million \
parameters
""",
    ),
    Mistake(
        "generate --model embedded:tiny --image photos/IMG_9.png --prompt ocr",
        2,
        """There is no image photos/IMG_9.png.
  where:    --image
  expected: a file, or a folder
  to do:    check the path
""",
    ),
    Mistake(
        "generate --model embedded:tiny --image photos/IMG_1.png",
        2,
        """There is no prompt.
  where:    --prompt
  expected: what to ask, in the words of the training data's prefixes
  to do:    add --prompt, e.g. --prompt "caption en", or --task caption
""",
    ),
    Mistake(
        "generate --model embedded:tiny --prompt ocr",
        2,
        """There is nothing to ask about.
  expected: either --image or --data
  to do:    add --image, a file or a folder, or --data, a JSONL file; not both
""",
    ),
    Mistake(
        "generate --model embedded:tiny --image broken.png --prompt ocr",
        2,
        """The image cannot be decoded: the file ends inside its header, or begins with another chunk.
  where:    broken.png
  expected: a whole image, one of AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP
""",
    ),
    Mistake(
        "generate --model embedded:big --image photos/IMG_1.png --prompt ocr",
        2,
        """There is no embedded checkpoint 'embedded:big'.
  expected: embedded:tiny
""",
    ),
    Mistake(
        "generate --model runs/pipeline --image photos/IMG_1.png --prompt ocr",
        2,
        """The folder runs/pipeline is no model, but holds tuned models.
  where:    runs/pipeline
  expected: a checkpoint's file or folder, or a tuned model's folder
  to do:    name one of these, the newest first:
    runs/pipeline/run-1/finetune/tuned
""",
    ),
    Mistake(
        "generate --model embedded:tiny --data gone.jsonl",
        2,
        """1 of 1 images could not be read; the others are answered.
  where:    the lines above
  expected: an answer in every line
  to do:    see "error" in the lines; run again with the same --output to ask only those
""",
    ),
    Mistake(
        "preview --data rows.jsonl",
        2,
        """No model is named.
  where:    --model
  expected: a tuned model's folder, gs://..., a checkpoint's file or folder, or embedded:tiny
  to do:    add --model, e.g. --model runs/paligemma-3b; --model embedded:tiny is the demo's toy of 1.2 million \
parameters
""",
    ),
    Mistake(
        "preview --model embedded:tiny --data row.jsonl",
        2,
        """There is no data row.jsonl.
  where:    --data
  expected: records, or a JSONL file
  to do:    check the path
""",
    ),
    Mistake(
        "convert folder --folder photos --output out.jsonl",
        2,
        """The 6 pictures are in no folders of labels.
  where:    photos
  expected: photos/LABEL/IMG_0.png: the name of a picture's folder is its suffix
  to do:    move the pictures into a folder for each label; or, with labels in a table: paligemma convert table \
--table table.csv --images photos --image COLUMN --suffix '{COLUMN}' --prefix 'answer en what is this?'
""",
    ),
    Mistake(
        "convert table --table table.csv --output out.jsonl --image file --prefix question --suffix '{label}'",
        2,
        """--prefix 'question' would be the same text in every row, and is the name of a column.
  where:    table.csv
  expected: a text in which {name} stands for a column
  to do:    --prefix '{question}'
""",
    ),
    Mistake(
        "convert table --table table.csv --output out.jsonl --prefix '{question}' --suffix '{label}'",
        2,
        """The table has no column 'image' (cells end at ',').
  where:    table.csv
  to do:    one of: file, label, question
""",
    ),
    Mistake(
        "convert table --table table.csv --output out.jsonl --image file --prefix '{question}' --suffix '{lable}'",
        2,
        """The table has no column 'lable' (cells end at ',').
  where:    table.csv
  to do:    did you mean 'label'?
""",
    ),
    Mistake(
        "convert table --table table.csv --output out.jsonl --image file --prefix '{question}' --suffix '{label}'",
        2,
        """6 of 6 rows name an image that is not there, e.g. 'IMG_0', 'IMG_1', 'IMG_2'.
  where:    .
  expected: names of images, relative to this folder
  to do:    there is one in photos: --images photos --image '{file}.png'
""",
    ),
    Mistake(
        "convert table --table table.csv --output out.jsonl --image file --images photos --prefix ocr --suffix '{label}'",
        2,
        """6 of 6 rows name an image that is not there, e.g. 'IMG_0', 'IMG_1', 'IMG_2'.
  where:    photos
  expected: names of images, relative to this folder
  to do:    the names lack their ending: --image '{file}.png'
""",
    ),
    Mistake(
        "pipeline run --source embedded:tiny --train-data row.jsonl --root new",
        2,
        """There is no HERE/row.jsonl.
  where:    --train-data
  expected: a JSONL file
  to do:    HERE has broken.png, elsewhere.jsonl, empty.jsonl, gone.jsonl, photos
""",
    ),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evening")
    (folder / "photos").mkdir()
    photos = SmallData(folder / "photos")
    names = [photos.add_image(f"IMG_{number}.png", number) for number in range(6)]
    rows = [{"image": f"photos/{name}", "prefix": "ocr", "suffix": str(number)} for number, name in enumerate(names)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "elsewhere.jsonl").write_text("".join(json.dumps({**row, "image": "no/" + row["image"]}) + "\n" for row in rows))
    (folder / "empty.jsonl").write_text("")
    (folder / "prose.jsonl").write_text("These are no rows.\n")
    (folder / "table.csv").write_text("file,question,label\n" + "".join(f"IMG_{n},what is it?,thing {n}\n" for n in range(6)))
    (folder / "recipe.yaml").write_text("stepz: 3\n")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "runs/pipeline/run-1/finetune/tuned").mkdir(parents=True)
    (folder / "runs/pipeline/run-1/finetune/tuned/tuned.json").touch()
    (folder / "gone.jsonl").write_text(json.dumps({"image": "gone.png", "prefix": "ocr"}) + "\n")
    return folder


def ask(command: str, here: Path) -> tuple[int, str]:
    """The exit code of a command, and what it says at its end."""
    done = CliRunner().invoke(app, shlex.split(command.replace("RUN", RUN)))
    error = done.exception
    assert error is None or isinstance(error, PaliGemmaError | SystemExit), repr(error)
    said = str(error) if isinstance(error, PaliGemmaError) else done.output
    return getattr(error, "exit_code", done.exit_code), said.replace(str(here), "HERE").strip()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.command)
def test_the_user_sees(mistake: Mistake, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    assert ask(mistake.command, here) == (mistake.exit_code, mistake.says.strip())
    assert not (here / "new").exists()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.command)
def test_a_message_says_where_it_is_or_what_was_expected_or_what_to_do(mistake: Mistake) -> None:
    particulars = [line.split(":")[0].strip() for line in mistake.says.splitlines() if line.startswith("  ")]
    assert {"where", "expected", "to do"} & set(particulars)
