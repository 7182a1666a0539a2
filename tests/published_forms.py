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


def _lines(*values: object) -> str:
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
        _lines(
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


def _captions(
    form: str, annotations: object, *more: str, name: str = "annotations.json", preset: str = "", **others
) -> Published:
    annotated = name.rpartition("/")[0] or name  # a file, or the folder of such files
    command = ("captions", "--form", form, "--annotations", f"{{}}/{annotated}", "--images", "{}", *more)
    files = {name: annotations, **others.pop("files")}
    return Published(preset, form, command, files, document=others.pop("document", name), **others)


_CAPTIONS = {
    "info": {"description": "COCO 2014 Dataset"},
    "images": [{"license": 5, "file_name": "COCO_train2014_000000057870.jpg", "height": 480, "width": 640, "id": 57870}],
    "annotations": [
        {"image_id": 57870, "id": 787980, "caption": "A restaurant has modern wooden tables and chairs."},
        {"image_id": 57870, "id": 789366, "caption": "A long restaurant table with rattan rounded back chairs."},
    ],
}
_SCREENS = {"37.jpg": PICTURE, "24.jpg": PICTURE, "train.txt": "37\n"}
_WIDGET = {"bounds": [0, 0, 1440, 2560], "children": [{"bounds": [144, 256, 720, 1280], "class": "android.widget.Button"}]}

CAPTIONS = [
    # coco35l/coco35l.py:118-154: English was what the German was made from
    _captions(
        "coco35l",
        _lines(
            {"image_id": "57870_0", "caption_tokenized": "A restaurant .", "trg_lang": "de",
             "translation_tokenized": "Ein Restaurant ."},
            {"image_id": "57870_0", "caption_tokenized": "A restaurant .", "trg_lang": "zh",
             "translation_tokenized": "餐厅 。"},
        ),
        name="coco_mt_train.jsonl", preset="caption-coco35l", files={"train2014/COCO_train2014_000000057870.jpg": PICTURE},
        rows=(
            ("train2014/COCO_train2014_000000057870.jpg", "caption de", "Ein Restaurant ."),
            ("train2014/COCO_train2014_000000057870.jpg", "caption en", "A restaurant ."),
            ("train2014/COCO_train2014_000000057870.jpg", "caption zh", "餐厅 。"),
        ),
    ),
    # xm3600/xm3600.py:114-136: what the same preset is judged by
    _captions(
        "xm3600",
        _lines({"image/key": "000411001ff7dd4f", "image/locale": "ar",
                "fi": {"caption": ["Kivi", "Iso kivi"], "caption/tokenized": ["Kivi", "Iso kivi"]}}),
        "--language", "fi", "--rows-for", "image",
        name="captions.jsonl", files={"images/000411001ff7dd4f.jpg": PICTURE},
        rows=(("images/000411001ff7dd4f.jpg", "caption fi", "Kivi"),), answers=(("Kivi", "Iso kivi"),),
    ),
    # textcaps/textcaps.py:102-124, transfers/textcaps.py:58: lower case
    _captions(
        "textcaps",
        {
            "dataset_type": "train", "dataset_name": "textcaps", "dataset_version": "0.1",
            "data": [
                {"caption_str": "A sign that says STOP", "caption_id": 1, "image_id": "0054c91397f2fe05", "image_classes": [],
                 "flickr_original_url": "https://x/y.jpg", "image_width": 1024, "image_height": 768, "set_name": "train",
                 "image_name": "0054c91397f2fe05", "image_path": "train/0054c91397f2fe05.jpg", "caption_tokens": [],
                 "reference_strs": ["A sign that says STOP"], "reference_tokens": []}
            ],
        },
        preset="caption-textcaps", files={"train_images/0054c91397f2fe05.jpg": PICTURE},
        rows=(("train_images/0054c91397f2fe05.jpg", "caption en", "a sign that says stop"),),
    ),
    # scicap/scicap.py:94-205, transfers/scicap.py:23: a file for each figure, and a list of those without subfigures
    _captions(
        "scicap",
        {
            "contains-subfigure": False, "paper-ID": "1001.0025v1", "figure-ID": "1001.0025v1-Figure2-1.png",
            "figure-type": "Graph Plot",
            "0-originally-extracted": "Figure 2: Energy over TIME.",
            "1-lowercase-and-token-and-remove-figure-index": {"caption": "energy over time .",
            "sentence": ["energy over time ."]},
            "2-normalized": {"2-1-basic-num": {"caption": "energy over time ."}},
        },
        "--ids", "{}/file_idx.json",
        name="captions/1001.0025v1-Figure2-1.json", preset="caption-scicap",
        files={"file_idx.json": ["1001.0025v1-Figure2-1.png"], "1001.0025v1-Figure2-1.png": PICTURE},
        rows=(("1001.0025v1-Figure2-1.png", "caption en", "energy over time ."),),
    ),
    # screen2words/screen2words.py:99-120: a table, and a list of a split's screens
    _captions(
        "screen2words", "screenId,summary\n37,page of the news app\n37,display of news\n24,another\n",
        "--ids", "{}/train.txt",
        name="screen_summaries.csv", preset="caption-screen2words", files=_SCREENS,
        rows=(("37.jpg", "caption en", "page of the news app"), ("37.jpg", "caption en", "display of news")),
    ),
    # widgetcap/widgetcap.py:101-151: the box is at the node's place in the screen's view, in units of a canvas 2560 high
    _captions(
        "widgetcap", "screenId,nodeId,captions\n37,0.0,go back|back to the list\n24,0.0,another\n",
        "--ids", "{}/train.txt", "--size", "32",
        name="widget_captions.csv", preset="caption-widgetcap", files={**_SCREENS,
         "37.json": {"activity": {"root": _WIDGET}}},
        rows=(
            ("images/box-37_0.0-32.png", "caption en", "go back"),
            ("images/box-37_0.0-32.png", "caption en", "back to the list"),
        ),
    ),
    # cocodataset.org/#format-data
    Published(
        "caption-cococap", "coco", ("coco-captions", "--annotations", "{}/annotations.json", "--images", "{}"),
        {"annotations.json": _CAPTIONS, "COCO_train2014_000000057870.jpg": PICTURE},
        tuple(("COCO_train2014_000000057870.jpg", "caption en", one["caption"]) for one in _CAPTIONS["annotations"]),
    ),
    # nocaps/nocaps.py:104-131: the same form; what the same preset is judged by too
    Published(
        "", "nocaps", ("coco-captions", "--annotations", "{}/annotations.json", "--images", "{}", "--rows-for", "image"),
        {
            "annotations.json": {
                **_CAPTIONS,
                "images": [
                    {"license": 0, "file_name": "0013ea2087020901.jpg", "width": 1024,
                     "coco_url": "https://x/0013ea2087020901.jpg",
                     "height": 732, "id": 57870, "open_images_id": "0013ea2087020901", "domain": "in-domain"}
                ],
            },
            "0013ea2087020901.jpg": PICTURE,
        },
        (("0013ea2087020901.jpg", "caption en", "A restaurant has modern wooden tables and chairs."),),
        (tuple(one["caption"] for one in _CAPTIONS["annotations"]),),
    ),
]  # fmt: skip
"""A data set for each form of captions."""

_CAT_AND_DOG = (
    "detect cat ; dog",
    "<loc0000><loc0512><loc1023><loc1023> dog ; <loc0205><loc0256><loc0818><loc0767> cat",
)
_BOXED = {"images/train/1.jpg": PICTURE}


def _boxes(form: str, files: Mapping[str, object], *more: str, **others) -> Published:
    name = next(iter(files))
    command = ("boxes", "--form", form, "--annotations", f"{{}}/{others.pop('annotations', name)}", "--images", "{}", *more)
    return Published("", form, command, files, document=name, **others)


def _studio(kind: str, value: dict, **more: object) -> dict:
    size = {"original_width": 40, "original_height": 30, "image_rotation": 0}
    return {"id": "X_12fGk", "from_name": "label", "to_name": "image", "type": kind, "value": value, **size, **more}


BOXES = [
    # ultralytics/ultralytics at commit 02121a5, docs/en/datasets/detect/index.md:17-37: a box, a polygon; an image without
    # labels
    _boxes(
        "yolo",
        {
            "data.yaml": "path: ../datasets/pets\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: cat\n  1: dog\n",
            "labels/train/1.txt": "0 0.5 0.5 0.5 0.6\n1 0.5 0 1 0 1 1 0.5 1\n7 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5 0.9\n",
            "images/train/2.jpg": PICTURE, **_BOXED,
        },
        rows=(("images/train/1.jpg", *_CAT_AND_DOG),), skips=("category_unlisted", "box_malformed"),
         words="1 images without boxes",
    ),
    # facebookresearch/detectron2 at commit 0a07b6b, detectron2/data/datasets/pascal_voc.py:27-71: pixels are counted from 1
    _boxes(
        "voc",
        {
            "Annotations/1.xml": "<annotation><folder>VOC2007</folder><filename>1.jpg</filename>"
            "<size><width>40</width><height>30</height><depth>3</depth></size><segmented>0</segmented>"
            "<object><name>cat</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>"
            "<bndbox><xmin>11</xmin><ymin>7</ymin><xmax>30</xmax><ymax>24</ymax></bndbox></object>"
            "<object><name>dog</name><bndbox><xmin>21</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>"
            "</annotation>",
            "Annotations/2.xml": "<annotation><filename>2.jpg</filename></annotation>",
            "ImageSets/Main/train.txt": "1\n", "JPEGImages/1.jpg": PICTURE,
        },
        "--split", "train", annotations="Annotations", rows=(("JPEGImages/1.jpg", *_CAT_AND_DOG),),
        words="2 boxes in pixels that are counted from 1",
    ),
    # cvat-ai/cvat at commit 2eaa89c, site/content/en/docs/dataset_management/formats/format-xml.md:82-149
    _boxes(
        "cvat",
        {
            "annotations.xml": '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
            "<meta><task><id>4</id><labels><label><name>cat</name></label></labels></task></meta>"
            '<image id="0" name="train/1.jpg" width="40" height="30">'
            '<box label="cat" occluded="0" source="manual" xtl="10.00" ytl="6.00" xbr="30.00" ybr="24.00" z_order="0">'
            '<attribute name="a">b</attribute></box>'
            '<polygon label="dog" points="20.00,0.00;40.00,0.00;40.00,30.00;20.00,30.00" z_order="1"></polygon>'
            '<tag label="good_frame" source="manual"></tag></image>'
            '<image id="1" name="train/2.jpg" width="40" height="30"></image></annotations>',
            **_BOXED,
        },
        rows=(("images/train/1.jpg", *_CAT_AND_DOG),), skips=("shape_other",), words="1 image_without_box",
    ),
    # wkentaro/labelme at commit 00385ce, labelme/_label_file.py:41-77 and 145-160: names are relative to the file
    _boxes(
        "labelme",
        {
            "labels/1.json": {
                "version": "5.5.0", "flags": {}, "imagePath": "..\\images\\train\\1.jpg", "imageData": None,
                "imageHeight": 30, "imageWidth": 40,
                "shapes": [
                    {"label": "cat", "points": [[30.0, 24.0], [10.0, 6.0]], "group_id": None, "shape_type": "rectangle",
                     "flags": {}},
                    {"label": "dog", "points": [[20, 0], [40, 0], [40, 30], [20, 30]], "shape_type": "polygon", "flags": {}},
                    {"label": "nose", "points": [[3, 4]], "shape_type": "point", "flags": {}},
                ],
            },
            **_BOXED,
        },
        annotations="labels", rows=(("images/train/1.jpg", *_CAT_AND_DOG),), skips=("shape_other",),
    ),
    # HumanSignal/label-studio at commit 0f38ca1, docs/source/includes/result_format.md:1-133: percent, and names of uploads
    _boxes(
        "label-studio",
        {
            "annotations.json": [
                {
                    "id": 12, "data": {"image": "/data/upload/1/0a1b2c3d-1.jpg"}, "predictions": [], "project": 1,
                    "annotations": [
                        {"id": 3, "completed_by": 1, "was_cancelled": True, "result": []},
                        {
                            "id": 4, "completed_by": 2, "was_cancelled": False, "ground_truth": False,
                            "result": [
                                _studio("rectanglelabels", {"x": 25, "y": 20, "width": 50, "height": 60, "rotation": 0,
                                                            "rectanglelabels": ["cat"]}),
                                _studio("polygonlabels", {"points": [[50, 0], [100, 0], [100, 100]],
                                 "polygonlabels": ["dog"]}),
                                {"id": "a", "type": "choices", "value": {"choices": ["indoor"]}},
                            ],
                        },
                    ],
                }
            ],
            "1.jpg": PICTURE,
        },
        rows=(("1.jpg", *_CAT_AND_DOG),), skips=("shape_other",), words="1 name_from_address",
    ),
    # roboflow's export of COCO, _annotations.coco.json beside the images: category 0 is the name of all, and has no box
    Published(
        "", "roboflow-coco", ("coco-detection", "--annotations", "{}/train/_annotations.coco.json", "--images", "{}/train"),
        {
            "train/_annotations.coco.json": {
                "info": {"year": "2024", "version": "1", "description": "Exported from roboflow.com"},
                "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
                "categories": [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 1, "name": "cat",
                "supercategory": "pets"},
                               {"id": 2, "name": "dog", "supercategory": "pets"}],
                "images": [{"id": 0, "license": 1, "file_name": "1_jpg.rf.0a1b.jpg", "height": 30, "width": 40}],
                "annotations": [
                    {"id": 0, "image_id": 0, "category_id": 1, "bbox": [10, 6, 20, 18], "area": 360, "segmentation": [],
                     "iscrowd": 0},
                    {"id": 1, "image_id": 0, "category_id": 2, "bbox": [20, 0, 20, 30], "area": 600, "segmentation": [],
                     "iscrowd": 0},
                ],
            },
            "train/1_jpg.rf.0a1b.jpg": PICTURE,
        },
        (("1_jpg.rf.0a1b.jpg", *_CAT_AND_DOG),), document="train/_annotations.coco.json",
    ),
    # lichengunc/refer at commit 2fe1dfe, refer.py:64-75 and 100-131; refs as JSON
    Published(
        "refcoco-seg", "refcoco",
        ("refcoco", "--annotations", "{}/instances.json", "--refs", "{}/refs.json", "--split", "train", "--images", "{}"),
        {
            "refs.json": [
                {"sent_ids": [0, 1], "file_name": "COCO_train2014_000000581857_16.jpg", "ann_id": 1719310, "ref_id": 0,
                 "image_id": 581857, "split": "train", "category_id": 1,
                 "sentences": [
                     {"tokens": ["lady"], "raw": "the lady with the blue shirt", "sent_id": 0,
                      "sent": "the lady with the blue shirt"},
                     {"tokens": ["lady"], "raw": "lady w back to us", "sent_id": 1, "sent": "lady w back to us"},
                 ]},
                {"sent_ids": [2], "ann_id": 1719310, "ref_id": 1, "image_id": 581857, "split": "testA", "category_id": 1,
                 "sentences": [{"tokens": ["she"], "raw": "she", "sent_id": 2, "sent": "she"}]},
            ],
            "instances.json": {
                "images": [{"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "height": 30, "width": 40}],
                "annotations": [{"id": 1719310, "image_id": 581857, "category_id": 1, "bbox": [10, 6, 20, 18], "iscrowd": 0,
                                 "segmentation": [[10, 6, 30, 6, 30, 24]], "area": 180}],
                "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
            },
            "COCO_train2014_000000581857.jpg": PICTURE,
        },
        tuple(
            ("COCO_train2014_000000581857.jpg", f"detect {text}", f"<loc0205><loc0256><loc0818><loc0767> {text}")
            for text in ("the lady with the blue shirt", "lady w back to us")
        ),
        skips=("left_out",), document="refs.json",
    ),
    # open-mmlab/mmdetection, tools/dataset_converters/refcoco2odvg.py:33-92: MDETR's files have an image for each expression
    Published(
        "", "refcoco-mdetr", ("refcoco", "--annotations", "{}/annotations.json", "--images", "{}"),
        {
            "annotations.json": {
                "info": [], "licenses": [],
                "images": [{"file_name": "COCO_train2014_000000581857.jpg", "height": 30, "width": 40, "id": 0,
                "original_id": 581857,
                            "caption": "the lady with the blue shirt", "dataset_name": "refcoco"}],
                "annotations": [{"area": 180, "iscrowd": 0, "image_id": 0, "category_id": 1, "id": 0, "bbox": [10, 6, 20, 18],
                                 "original_id": 1719310, "tokens_positive": [[0, 28]], "segmentation": []}],
                "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
            },
            "COCO_train2014_000000581857.jpg": PICTURE,
        },
        (
            ("COCO_train2014_000000581857.jpg", "detect the lady with the blue shirt",
             "<loc0205><loc0256><loc0818><loc0767> the lady with the blue shirt"),
        ),
    ),
]  # fmt: skip
"""A data set for each form of boxes."""
