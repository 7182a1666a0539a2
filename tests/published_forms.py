"""Small data sets in the forms in which the presets' data are published, built by hand from the published schemas.

Lines are of google-research/big_vision at commit 0127fb6,
 which reads these files: `big_vision/datasets/NAME/NAME.py` for where
things are, `big_vision/configs/proj/paligemma/transfers/NAME.py` for the texts that PaliGemma was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

PICTURE = object()
"""In place of a file's content: a picture of 40 x 30 pixels."""


@dataclass(frozen=True)
class Published:
    """A data set as it is published, and what becomes of it.

    Attributes:
        preset: the preset that is trained on it; empty if none is.
        form: name of its form, for `--form`.
        command: arguments of `paligemma convert`; `{}` stands for the folder.
        files: by path, JSON values, texts or `PICTURE`.
        rows: the rows, without their `answers`.
        answers: of each row, where it has any.
        skips: codes of what is skipped.
        document: the file that a test may change anywhere.
    """

    preset: str
    form: str
    command: tuple[str, ...]
    files: Mapping[str, object]
    rows: tuple[tuple[str | list[str], str, str], ...]
    answers: tuple[tuple[str, ...], ...] = ()
    skips: tuple[str, ...] = ()
    words: str = ""
    document: str = field(default="annotations.json")

    @property
    def joins(self) -> bool:
        """Whether entries of one image become one row."""
        return self.command[0] in ("boxes", "coco-detection") or "image" in self.command

    def entries(self, document: object) -> list | dict | None:
        """The entries that a document of this form has; None if they are not its list, or the form has other ones."""
        if isinstance(document, dict):
            document = next((document[key] for key in ("data", "annotations", "answers") if key in document), document)
        unrolled = self.form in ("ocrvqa", "ai2d", "scicap", "widgetcap", "labelme", "label-studio", "refcoco")
        return document if isinstance(document, list | dict) and not unrolled else None

    def write(self, folder: Path) -> list[str]:
        """Writes the files; returns the arguments."""
        for name, content in self.files.items():
            write_one(folder / name, content)
        return [argument.replace("{}", str(folder)) for argument in self.command]


def write_one(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is PICTURE:
        Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(
            path, {".tif": "TIFF", ".png": "PNG"}.get(path.suffix, "JPEG")
        )
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_text(json.dumps(content))


def _vqa(form: str, annotations: object, *more: str, preset: str = "", name: str = "annotations.json", **others) -> Published:
    annotated = name.rpartition("/")[0] or name  # a file, or the folder of such files
    command = ("vqa", "--form", form, "--annotations", f"{{}}/{annotated}", "--images", "{}", *more)
    files = {name: annotations, **others.pop("files")}
    return Published(preset or f"vqa-{form}", form, command, files, document=others.pop("document", name), **others)


def lines_of(*values: object) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


_TEN = [
    {"answer": answer, "answer_confidence": "yes", "answer_id": n + 1} for n, answer in enumerate(["net"] * 6 + ["nets"] * 4)
]
_COCO_QUESTIONS = {
    "info": {"year": 2017, "version": "2.0"},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "data_subtype": "train2014",
    "questions": [{"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000}],
}
_COCO_ANSWERS = {
    "data_type": "mscoco",
    "annotations": [
        {
            "question_type": "what is this",
            "multiple_choice_answer": "net",
            "answers": _TEN,
            "image_id": 458752,
            "answer_type": "other",
            "question_id": 458752000,
        }
    ],
}
_COCO_ROW = ("COCO_train2014_000000458752.jpg", "answer en What is this photo taken looking through?", "net")
_AOKVQA = [
    {
        "split": "train",
        "image_id": 299207,
        "question_id": "22MexNkBPpdZGX6sxbxVBH",
        "question": "What is the man by the bags awaiting?",
        "choices": ["skateboarder", "train", "delivery", "cab"],
        "correct_choice_idx": 3,
        "direct_answers": ["ride", "ride", "bus", "taxi", "travelling", "traffic", "taxi", "cab", "cab", "ride"],
        "difficult_direct_answer": False,
        "rationales": ["A train would not be on the street.", "He is near a road.", "He needs a ride."],
    }
]
_AOKVQA_PICTURE = {"train2017/000000299207.jpg": PICTURE}
_RSVQA_QUESTIONS = [
    {"id": 0, "date_added": 1.5, "img_id": 7, "people_id": 0, "type": "presence", "question": "Is a small road present?",
     "answers_ids": [0], "active": True},
    {"id": 1, "date_added": 1.5, "img_id": 7, "people_id": 0, "type": "count", "question": "How many roads are there?",
     "answers_ids": [1], "active": True},
    {"id": 2, "active": False},
    {"id": 3, "date_added": 1.5, "img_id": 7, "people_id": 0, "type": "area", "question": "What is the area of roads?",
     "answers_ids": [3], "active": True},
]  # fmt: skip
_RSVQA_ANSWERS = [
    {"id": 0, "date_added": 1.5, "question_id": 0, "people_id": 0, "answer": "Yes", "active": True},
    {"id": 1, "date_added": 1.5, "question_id": 1, "people_id": 0, "answer": "12", "active": True},
    {"id": 2, "active": False},
    {"id": 3, "date_added": 1.5, "question_id": 3, "people_id": 0, "answer": "16m2", "active": True},
]  # fmt: skip


def _rsvqa(form: str, picture: str, kept: int) -> Published:
    """`rsvqa_lr/rsvqa_lr.py:145-175`, `rsvqa_hr/rsvqa_hr.py:145-176`."""
    return _vqa(
        form,
        {"answers": _RSVQA_ANSWERS[:kept]},
        "--questions",
        "{}/questions.json",
        preset=form,
        files={"questions.json": {"questions": _RSVQA_QUESTIONS[:kept]}, picture: PICTURE},
        rows=((picture, "answer en Is a small road present?", "yes"),),
        answers=(("yes",),),
        skips=("left_out",) * (kept - 1),
        words="left_out: the entry is of another split",
    )


QUESTIONS = [
    # vqa/vqa.py:99-147: two files, joined by question_id; the image's number is in its name
    _vqa(
        "vqav2", _COCO_ANSWERS, "--questions", "{}/questions.json",
        files={"questions.json": _COCO_QUESTIONS, "COCO_train2014_000000458752.jpg": PICTURE},
        rows=(_COCO_ROW,), answers=(("net",) * 6 + ("nets",) * 4,),
    ),
    # okvqa/okvqa.py:146-213: the same, and raw answers beside the answers; here the picture is COCO's val2014
    _vqa(
        "okvqa",
        {"annotations": [{**_COCO_ANSWERS["annotations"][0], "question_type": "four",
                          "answers": [{**one, "raw_answer": f"{one['answer']}s"} for one in _TEN]}]},
        "--questions", "{}/questions.json",
        files={"questions.json": _COCO_QUESTIONS, "val2014/COCO_val2014_000000458752.jpg": PICTURE},
        rows=(("val2014/COCO_val2014_000000458752.jpg", *_COCO_ROW[1:]),), answers=(("net",) * 6 + ("nets",) * 4,),
    ),
    # aokvqa/aokvqa.py:148-182, transfers/aokvqa_da.py:28-31
    _vqa(
        "aokvqa-da", _AOKVQA, files=_AOKVQA_PICTURE,
        rows=(("train2017/000000299207.jpg", "answer en What is the man by the bags awaiting?", "ride"),),
        answers=(("ride", "ride", "bus", "taxi", "travelling", "traffic", "taxi", "cab", "cab", "ride"),),
    ),
    # the same file, transfers/aokvqa_mc.py:23-25 and 47-53: two blanks, and a tab between the choices
    _vqa(
        "aokvqa-mc", _AOKVQA, files=_AOKVQA_PICTURE,
        rows=(
            (
                "train2017/000000299207.jpg",
                "answer en  What is the man by the bags awaiting? choose from: skateboarder \t train \t delivery \t cab",
                "cab",
            ),
        ),
        answers=(("cab",),),
    ),
    # gqa/gqa.py:127-159: an object by the questions' ids
    _vqa(
        "gqa",
        {
            "02930152": {
                "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (2486325)"}],
                "entailed": ["02930160"], "equivalent": ["02930152"], "question": "Is the sky dark?", "imageId": "2354786",
                "isBalanced": True, "groups": {"global": None, "local": "06-sky_dark"}, "answer": "yes",
                "semanticStr": "select: sky (2486325)->verify color: dark [0]", "annotations": {}, "types": {},
                "fullAnswer": "Yes, the sky is dark.",
            }
        },
        files={"images/2354786.jpg": PICTURE},
        rows=(("images/2354786.jpg", "answer en Is the sky dark?", "yes"),), answers=(("yes",),),
    ),
    # lil-lab/nlvr at commit 1892484, nlvr2/README.md:13-31: lines; photos for training are in one of 100 folders
    _vqa(
        "nlvr2",
        lines_of(
            {"validation": {"61": "True"}, "sentence": "There are exactly six bottles in the right image.", "label": "True",
             "left_url": "https://example.org/a.jpg", "right_url": "https://example.org/b.jpg", "writer": "103",
             "synset": "beer bottle", "query": "row of beer bottle0", "identifier": "train-896-0-1", "directory": 47},
            {"validation": {"28": "False"}, "sentence": "There is an empty glass.", "label": "False",
             "left_url": "https://example.org/c.jpg", "right_url": "https://example.org/d.jpg", "writer": "103",
             "synset": "beer bottle", "query": "group of beer bottles41", "identifier": "test1-0-1-0",
             "extra_validations": {"56": "False"}},
            {"sentence": "There is an empty glass.", "label": "False", "identifier": "../../etc-0-1-0"},
        ),
        preset="nlvr2",
        files={
            f"images/{name}-img{number}.png": PICTURE
            for name in ("train/47/train-896-0", "test1/test1-0-1") for number in range(2)
        },
        rows=(
            (["images/train/47/train-896-0-img0.png", "images/train/47/train-896-0-img1.png"],
             "answer en There are exactly six bottles in the right image.", "True"),
            (["images/test1/test1-0-1-img0.png", "images/test1/test1-0-1-img1.png"],
             "answer en There is an empty glass.", "False"),
        ),
        answers=(("True",), ("False",)), skips=("image_id_missing",),
    ),
    # textvqa/textvqa.py:117-142: ids of images are hexadecimal, some only digits
    _vqa(
        "textvqa",
        {
            "dataset_type": "train", "dataset_name": "textvqa", "dataset_version": "0.5.1",
            "data": [
                {"question": "what is the brand of phone?", "image_id": "0054c91397f2fe05", "image_classes": ["Belt"],
                 "flickr_original_url": "https://farm6.staticflickr.com/2891/9134076951_f65b421097_o.jpg",
                 "image_width": 1024, "image_height": 730, "answers": ["nokia"] * 8 + ["toshiba", "nokia"],
                 "question_tokens": ["what"], "question_id": 0, "set_name": "train"},
                {"question": "what does it say?", "image_id": "0000000000000042", "question_id": 1, "set_name": "test"},
            ],
        },
        files={"train_images/0054c91397f2fe05.jpg": PICTURE},
        rows=(("train_images/0054c91397f2fe05.jpg", "answer en what is the brand of phone?", "nokia"),),
        answers=(("nokia",) * 8 + ("toshiba", "nokia"),), skips=("answer_missing",),
         words="the annotation has no answer that is text or a number",
    ),
    # stvqa/stvqa.py:109-134, transfers/stvqa.py:59-65: answers in lower case
    _vqa(
        "stvqa",
        {
            "dataset_name": "st-vqa", "task": "3",
            "data": [
                {"file_path": "coco-text/COCO_train2014_000000419150.jpg", "question_id": 11399, "set_name": "train",
                 "question": "What is the number on the bus?", "answers": ["44", "Line 44"], "dataset": "coco-text",
                 "file_name": "COCO_train2014_000000419150.jpg", "image_width": 640, "image_height": 480}
            ],
        },
        files={"train_images/coco-text/COCO_train2014_000000419150.jpg": PICTURE},
        rows=(("train_images/coco-text/COCO_train2014_000000419150.jpg", "answer en What is the number on the bus?", "44"),),
        answers=(("44", "line 44"),),
    ),
    # open-mmlab/mmpretrain at commit 057ed6e, mmpretrain/datasets/ocr_vqa.py:46-67: books with lists of questions and answers
    _vqa(
        "ocrvqa",
        {
            "761183272": {
                "imageURL": "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.jpg",
                "questions": ["Who wrote this book?", "Is this a games related book?"], "answers": ["Sandra Boynton", "No"],
                "title": "Mom's Family Wall Calendar 2016", "authorName": "Sandra Boynton", "genre": "Calendars", "split": 1,
            },
            "1449": {"imageURL": "http://ecx.images-amazon.com/images/I/2.gif", "questions": ["Who?"], "answers": ["A"],
            "split": 3},
        },
        "--split", "train",
        files={"images/761183272.jpg": PICTURE},
        rows=(
            ("images/761183272.jpg", "answer en Who wrote this book?", "Sandra Boynton"),
            ("images/761183272.jpg", "answer en Is this a games related book?", "No"),
        ),
        answers=(("Sandra Boynton",), ("No",)), skips=("left_out",),
    ),
    # vizwizvqa/vizwizvqa.py:94-128: some answers are empty
    _vqa(
        "vizwiz",
        [
            {
                "image": "VizWiz_train_00000000.jpg", "question": "What's the name of this product?",
                "answers": [{"answer_confidence": "yes", "answer": "basil leaves"}] * 2
                + [{"answer_confidence": "no", "answer": "basil"}, {"answer_confidence": "yes", "answer": ""}],
                "answer_type": "other", "answerable": 1,
            }
        ],
        files={"train/VizWiz_train_00000000.jpg": PICTURE},
        rows=(("train/VizWiz_train_00000000.jpg", "answer en What's the name of this product?", "basil leaves"),),
        answers=(("basil leaves", "basil leaves", "basil"),), words="1 answer_dropped",
    ),
    # tallyqa/tallyqa.py:115-146: answers are numbers, names lead into COCO and Visual Genome
    _vqa(
        "tallyqa",
        [
            {"image": "VG_100K_2/2410408.jpg", "answer": 4, "data_source": "imported_genome", "image_id": 1,
             "question": "How many dogs are there?", "question_id": 30097017},
            {"image": "train2014/COCO_train2014_000000270056.jpg", "answer": 0, "data_source": "imported_vqa", "image_id": 2,
             "question": "How many feet can be seen?", "question_id": 1},
        ],
        files={"VG_100K_2/2410408.jpg": PICTURE, "train2014/COCO_train2014_000000270056.jpg": PICTURE},
        rows=(
            ("VG_100K_2/2410408.jpg", "answer en How many dogs are there?", "4"),
            ("train2014/COCO_train2014_000000270056.jpg", "answer en How many feet can be seen?", "0"),
        ),
        answers=(("4",), ("0",)),
    ),
    # docvqa/docvqa.py:97-110, transfers/docvqa.py:42-47: the bare question
    _vqa(
        "docvqa",
        {
            "dataset_name": "docvqa", "dataset_version": "1.0", "dataset_split": "val",
            "data": [
                {"questionId": 49153, "question": "What is the ‘actual’ value per 1000, during the year 1975?",
                 "question_types": ["figure/diagram"], "image": "documents/pybv0228_81.png", "docId": 14465,
                 "ucsf_document_id": "pybv0228", "ucsf_document_page_no": "81", "answers": ["0.28", "0.28 "],
                 "data_split": "val"}
            ],
        },
        preset="docvqa", files={"val/documents/pybv0228_81.png": PICTURE},
        rows=(("val/documents/pybv0228_81.png", "What is the ‘actual’ value per 1000, during the year 1975?", "0.28"),),
        answers=(("0.28", "0.28 "),),
    ),
    # infovqa/infovqa.py:42-45 and 114-141: lower case, parts in any order
    _vqa(
        "infovqa",
        {
            "dataset_name": "infographicVQA", "dataset_version": "v1.0", "dataset_split": "val",
            "data": [
                {"questionId": 98313, "question": "Which companies?", "image_local_name": "38931.jpeg",
                 "image_url": "http://x/y.jpg",
                 "ocr_output_file": "38931.json", "answers": ["Apple, IBM", "apple"], "data_split": "val"}
            ],
        },
        preset="infovqa", files={"images/38931.jpeg": PICTURE},
        rows=(("images/38931.jpeg", "answer en Which companies?", "apple, ibm"),),
        answers=(("apple, ibm", "ibm, apple", "apple"),),
    ),
    # chartqa/chartqa.py:108-122, transfers/chartqa.py:28-33: the bare question
    _vqa(
        "chartqa",
        [{"imgname": "41699051005347.png", "query": "How many food item is shown in the bar graph?", "label": "14"}],
        preset="chartqa", files={"png/41699051005347.png": PICTURE},
        rows=(("png/41699051005347.png", "How many food item is shown in the bar graph?", "14"),), answers=(("14",),),
    ),
    # ai2d/ai2d.py:109-152 and 184-209: a file for each diagram; labels give way to letters where the question names these
    _vqa(
        "ai2d",
        {
            "imageName": "0.png",
            "questions": {
                "what is C in the diagram?": {
                    "abcLabel": True, "answerTexts": ["leaf", "root", "stem", "flower"], "correctAnswer": 2,
                    "questionId": "0.png-0",
                },
                "What does a bee eat?": {
                    "abcLabel": False, "answerTexts": ["honey", "iron"], "correctAnswer": 0, "questionId": "0.png-1",
                },
            },
        },
        preset="ai2d", name="questions/0.png.json",
        files={
            "annotations/0.png.json": {
                "arrowHeads": {}, "arrows": {}, "blobs": {}, "relationships": {},
                "text": {"T0": {"id": "T0", "rectangle": [[5, 5], [30, 20]], "replacementText": "C", "value": "stem"}},
            },
            "images/0.png": PICTURE,
        },
        rows=(
            ("images/letters-a0c4a8664d4ecc27.png",
             "answer en  what is C in the diagram? choose from: leaf \t root \t stem \t flower", "stem"),
            ("images/0.png", "answer en  What does a bee eat? choose from: honey \t iron", "honey"),
        ),
        answers=(("stem",), ("honey",)), words="1 labels_replaced",
    ),
    # science_qa/science_qa.py:101-156, transfers/science_qa.py:23-54 and 80-87: letters; problems without a picture are left
    # out
    _vqa(
        "scienceqa",
        {
            "1": {"question": "Which of these states is farthest north?", "choices": ["West Virginia", "Louisiana"],
            "answer": 0,
                  "hint": "", "image": "image.png", "task": "closed choice", "grade": "grade2", "subject": "social science",
                  "topic": "geography", "category": "Geography", "skill": "Read a map", "lecture": "Maps",
                  "solution": "North.",
                  "split": "train"},
            "2": {"question": "Which word?", "choices": ["a", "b"], "answer": 1, "hint": "Read.", "image": None,
            "split": "train"},
            "3": {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "Look.", "image": "image.png",
            "split": "val"},
        },
        "--split", "train", preset="scienceqa", files={"train/1/image.png": PICTURE},
        rows=(
            (
                "train/1/image.png",
                "Question: Which of these states is farthest north?\nContext: N/A\n"
                "Options: (A) West Virginia, (B) Louisiana\nAnswer:",
                "The answer is A.",
            ),
        ),
        answers=(("The answer is A.",),), skips=("left_out", "left_out"),
    ),
    _rsvqa("rsvqa-lr", "Images_LR/7.tif", 3),
    _rsvqa("rsvqa-hr", "Data/7.png", 4),
]  # fmt: skip
"""A data set for each form of questions."""
