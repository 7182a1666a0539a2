"""Small data sets in the forms in which captions are published; see `published_forms`."""

from __future__ import annotations

from published_forms import PICTURE, Published, lines_of


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
        lines_of(
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
        lines_of({"image/key": "000411001ff7dd4f", "image/locale": "ar",
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
