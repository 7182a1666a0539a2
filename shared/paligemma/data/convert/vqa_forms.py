"""Published question sets: where question, picture and answers are in their files, and the texts PaliGemma was trained with.

Files: the builders in google-research/big_vision at commit 0127fb6, `big_vision/datasets/NAME/NAME.py`. Texts: the transfers in
`big_vision/configs/proj/paligemma/transfers/NAME.py` there. Each form names its lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paligemma.data.convert.vqa_entries import (
    Read,
    ai2d_diagrams,
    by_id,
    nlvr2_pairs,
    ocr_vqa_books,
    one_list,
    two_files,
)

_CHOOSE = "answer en  {question} choose from: {choices}"  # two blanks, as "answer en " and " {question}" were joined
_COCO_2014 = ("COCO_train2014_{image_id:012d}.jpg", "train2014/COCO_train2014_{image_id:012d}.jpg")
_COCO_2014 += tuple(name.replace("train", "val") for name in _COCO_2014)
_COCO_2017 = tuple(f"{folder}{{image_id:012d}}.jpg" for folder in ("", "train2017/", "val2017/"))


@dataclass(frozen=True)
class VqaForm:
    """A published form of questions.

    Attributes:
        read: reads the files' questions as objects.
        question: key of the question's text.
        answers: key of the answer, of a list of answers, or, with `choices`, of the right choice's number.
        images: names of an image; the first that is there is taken. `{number}` is the image's, from 0, if there are several.
        prefix: the prefix; `{question}`, `{choices}` and `{hint}` stand for texts.
        suffix: the suffix; `{answer}` and `{letter}` stand for the answer and the letter of its choice.
        choices: key of the list of choices.
        choice, between: how a choice is written, and what is between two of them.
        lower: whether answers are in lower case, as the official evaluation takes them.
        any_order: whether the parts of an answer that are joined by commas may be in any order.
        left_out: by key, values of entries that the transfer does not train on.
        splits: by name, the values of `split` that an entry of that split has.
        labels: whether labels in some pictures are replaced by letters, as the questions name them.
        image_count: images that each question is about.
    """

    read: Read
    images: tuple[str, ...]
    question: str = "question"
    answers: str = "answers"
    prefix: str = "answer en {question}"
    suffix: str = "{answer}"
    choices: str = ""
    choice: str = "{choice}"
    between: str = " \t "
    lower: bool = False
    any_order: bool = False
    left_out: Mapping[str, frozenset] = field(default_factory=dict)
    splits: Mapping[str, object] = field(default_factory=dict)
    labels: bool = False
    image_count: int = 1


_VQA = two_files("questions", "question_id", "annotations", "question_id")
_RSVQA = two_files("questions", "id", "answers", "question_id")
_INACTIVE = frozenset((False,))

FORMS: dict[str, VqaForm] = {
    # vqa/vqa.py:99-147, transfers/vqav2.py:42-47
    "vqav2": VqaForm(_VQA, _COCO_2014),
    # okvqa/okvqa.py:146-213, transfers/okvqa.py:42-47
    "okvqa": VqaForm(_VQA, _COCO_2014),
    # aokvqa/aokvqa.py:148-182, transfers/aokvqa_da.py:42-47
    "aokvqa-da": VqaForm(one_list(), _COCO_2017, answers="direct_answers"),
    # aokvqa/aokvqa.py:148-182, transfers/aokvqa_mc.py:23-53
    "aokvqa-mc": VqaForm(one_list(), _COCO_2017, answers="correct_choice_idx", choices="choices", prefix=_CHOOSE),
    # gqa/gqa.py:127-159, transfers/gqa.py:131
    "gqa": VqaForm(by_id, ("{imageId}.jpg", "images/{imageId}.jpg"), answers="answer"),
    # lil-lab/nlvr at commit 1892484, nlvr2/README.md:13-31 and nlvr2/util/download_images.py:84-93; transfers/nlvr2.py:45-54
    "nlvr2": VqaForm(
        nlvr2_pairs,
        tuple(f"{folder}{{pair}}-img{{number}}.png" for folder in ("", "{folder}/", "images/{folder}/")),
        question="sentence",
        answers="label",
        image_count=2,
    ),
    # textvqa/textvqa.py:117-142, transfers/textvqa.py:42-47
    "textvqa": VqaForm(
        one_list("data"), tuple(f"{folder}{{image_id}}.jpg" for folder in ("", "train_images/", "test_images/"))
    ),
    # stvqa/stvqa.py:109-134, transfers/stvqa.py:58-65
    "stvqa": VqaForm(one_list("data"), ("{file_path}", "train_images/{file_path}"), lower=True),
    # open-mmlab/mmpretrain at commit 057ed6e, mmpretrain/datasets/ocr_vqa.py:38-87; transfers/ocrvqa.py:53-58
    "ocrvqa": VqaForm(ocr_vqa_books, ("{id}{ending}", "images/{id}{ending}"), splits={"train": 1, "val": 2, "test": 3}),
    # vizwizvqa/vizwizvqa.py:94-128, transfers/vizwizvqa.py:42-47
    "vizwiz": VqaForm(one_list(), tuple(f"{folder}{{image}}" for folder in ("", "train/", "val/"))),
    # tallyqa/tallyqa.py:115-146, transfers/tallyqa.py:42-47
    "tallyqa": VqaForm(one_list(), ("{image}",), answers="answer"),
    # docvqa/docvqa.py:97-110, transfers/docvqa.py:42-47
    "docvqa": VqaForm(one_list("data"), tuple(f"{folder}{{image}}" for folder in ("", "train/", "val/")), prefix="{question}"),
    # infovqa/infovqa.py:114-141, transfers/infovqa.py:44-50
    "infovqa": VqaForm(one_list("data"), ("{image_local_name}", "images/{image_local_name}"), lower=True, any_order=True),
    # chartqa/chartqa.py:108-122, transfers/chartqa.py:28-33
    "chartqa": VqaForm(one_list(), ("{imgname}", "png/{imgname}"), question="query", answers="label", prefix="{question}"),
    # ai2d/ai2d.py:109-152, transfers/ai2d.py:22-53
    "ai2d": VqaForm(
        ai2d_diagrams,
        ("{imageName}", "images/{imageName}"),
        answers="correctAnswer",
        choices="answerTexts",
        prefix=_CHOOSE,
        labels=True,
    ),
    # science_qa/science_qa.py:101-156, transfers/science_qa.py:23-54 and 80-87, pp/proj/paligemma/sciqa_ops.py:41-63
    "scienceqa": VqaForm(
        by_id,
        ("{split}/{id}/{image}", "{id}/{image}"),
        answers="answer",
        choices="choices",
        prefix="Question: {question}\nContext: {hint}\nOptions: {choices}\nAnswer:",
        suffix="The answer is {letter}.",
        choice="({letter}) {choice}",
        between=", ",
        left_out={"image": frozenset((None, ""))},
        splits={"train": "train", "val": "val", "test": "test"},
    ),
    # rsvqa_lr/rsvqa_lr.py:145-175, transfers/rsvqa_lr.py:22-56
    "rsvqa-lr": VqaForm(
        _RSVQA,
        ("{img_id}.tif", "Images_LR/{img_id}.tif"),
        answers="answer",
        lower=True,
        left_out={"active": _INACTIVE, "type": frozenset(("count",))},
    ),
    # rsvqa_hr/rsvqa_hr.py:145-176, transfers/rsvqa_hr.py:22-56
    "rsvqa-hr": VqaForm(
        _RSVQA,
        ("{img_id}.png", "Data/{img_id}.png", "{img_id}.tif", "Data/{img_id}.tif"),
        answers="answer",
        lower=True,
        left_out={"active": _INACTIVE, "type": frozenset(("area", "count"))},
    ),
}
"""Forms by name."""
