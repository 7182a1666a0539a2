"""Small data sets in the forms in which boxes are published and exported; see `published_forms`."""

from __future__ import annotations

from collections.abc import Mapping

from published_forms import PICTURE, Published

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
