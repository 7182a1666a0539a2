"""Codes for skipped entries and for notes about used ones, with their texts for summary, list and page."""

from __future__ import annotations

from paligemma.data import rows

REASONS = {
    "not_an_object": "the entry is not a JSON object",
    "image_id_missing": "the annotation does not say which image it is of, in words or in a whole number",
    "image_unlisted": "the file lists no image of that id",
    "image_ambiguous": "the file lists several different images of that id",
    "image_unnamed": "the image has no file name that can be used",
    "image_path_unsafe": "the image's name is absolute, an address, or leads out of the image folder",
    "caption_missing": "the annotation has no caption, or one that is neither text nor a number",
    "question_id_missing": "the annotation does not say which question it answers, in words or in a whole number",
    "question_unlisted": "the questions have none of that id",
    "question_ambiguous": "the questions have several different ones of that id",
    "question_missing": "the question of that id has no text",
    "image_disagrees": "question and annotation are of different images",
    "answer_missing": "the annotation has no answer that is text or a number",
    "choices_wrong": "the choices are not a list of up to 26 texts",
    "left_out": "the entry is of another split, inactive, or of a kind that the preset leaves out (left out on purpose)",
    "language_missing": "the line does not say in which language its caption is",
    "file_unreadable": "the entry's own file is missing, too large, or cannot be read",
    "picture_unreadable": "the picture, which is drawn on, is missing or cannot be decoded",
    "labels_wrong": "the diagram's labels are not rectangles with a letter each",
    "category_missing": "the annotation has no category",
    "category_unlisted": "the file lists no category of that id",
    "category_ambiguous": "the file lists several different categories of that id",
    "category_unnamed": "the category, label or expression is empty, or has `;` or `<` in it, which would end it in the suffix",
    "expression_missing": "there is no expression, or one that is no text",
    "annotation_missing": "the reference does not say which annotation it means, in words or in a whole number",
    "annotation_unlisted": "the file lists no annotation of that id",
    "annotation_ambiguous": "the file lists several different annotations of that id",
    "crowd": "the box is around a crowd, which is no single object (left out on purpose)",
    "box_missing": "the annotation has no box, and no polygon to take one from",
    "box_malformed": "the box is not four finite numbers: x, y, width, height",
    "box_empty": "the box has a zero or negative width or height",
    "box_outside": "the box lies outside of the image",
    "box_too_small": "the box is so small that its corners are the same <loc> (a step is 1/1023 of the image)",
    "shape_other": "the shape has no extent, or none that is read: a point, a line, a tag (left out on purpose)",
    "box_fraction": "all boxes of the file lie within the first pixel: these are fractions of the image, not pixels",
    "size_unknown": "neither the file nor the image itself says how large the image is",
    "size_disagrees": "the image file has other proportions than the annotations say: nobody knows where the boxes belong",
    "cells_too_many": "the row has more cells than the header: a text with the delimiter in it is not in quotes",
    "cells_too_few": "the row has fewer cells than the header",
    "quotes_broken": "a quote in the row is not closed, or text follows a closing quote",
    "cell_too_large": "a cell, or a line, is larger than 16 Mi characters",
    "column_missing": "the row has no such column",
    "value_missing": "the column is empty (null, or not a number) in this row",
    "value_wrong": "the value cannot be put into a text, or is not an image",
    "label_unknown": "the number is not that of a class of the ClassLabel",
    "text_nul": "image, prefix or suffix has a NUL character",
    "format_other": "the file's format is not one that prepare_data reads (left out on purpose)",
    "label_missing": "the picture is in no label's folder (left out on purpose)",
    **{
        code: rows.REASONS[code]
        for code in ("line_too_long", "encoding_invalid", "json_invalid", "key_repeated", "suffix_empty")
    },
}
"""Reason codes of `OUTPUT.skipped.jsonl`, and what each means."""

ON_PURPOSE = frozenset(("crowd", "format_other", "label_missing", "left_out", "shape_other"))
"""Reasons that are not faults of the data: they are counted and listed, but do not make a conversion fail."""

NOTES = {
    "box_clipped": "boxes reach beyond their image, and end at its edge now (if many do: is the order x, y, width, height?)",
    "box_from_polygon": "boxes were taken around polygons, masks or ellipses, as there is no box of their own",
    "box_rotated": "boxes are rotated: the upright box around each was taken",
    "image_without_box": "images have no box: there is no row for them",
    "boxes_turned": "images have an EXIF orientation, and boxes in stored pixels: the boxes were turned with the image",
    "boxes_upright": "images have an EXIF orientation, and boxes in displayed pixels already: the boxes are as they were",
    "orientation_unclear": "images have an EXIF orientation, and sizes that do not tell in which pixels the boxes are",
    "size_from_file": "images have no width and height in the annotations: those of the image file were taken",
    "size_scaled": "images have another size than the annotations say, in the same proportions: boxes were scaled",
    "size_unchecked": "images could not be opened: whether their sizes and orientations agree is not known",
    "image_entry_unusable": "entries of the images have no id: no annotation can be of them",
    "entry_unusable": "questions, categories or annotations have no id: nothing can be of them",
    "entry_repeated": "images, questions, categories or annotations are listed more than once, alike",
    "name_backslashes": "image names have backslashes, which are slashes now",
    "name_absolute": "image names are absolute and inside the image folder: they are relative to it now",
    "name_from_url": "images have no file_name: the last two parts of their coco_url were taken, as for LVIS",
    "name_from_address": "images are named by an address: its last part, or the file that it leads to, was taken",
    "answer_dropped": "answers are empty, or neither text nor numbers, and were dropped beside others that can be used",
    "answer_in_order": "answers have more parts than are listed in every order: only the published order counts",
    "labels_replaced": "diagrams were copied to images/ with letters in place of labels, as their questions name them",
    "cell_of_many_lines": "rows have a cell of several lines; if none should, a quote is not closed",
    "hidden_left_out": "files and folders are hidden, or of the system (.ipynb_checkpoints, __MACOSX, Thumbs.db): left out",
    "link_left_out": "folders are links, which are not followed",
}
"""Notes about used entries, and about things that are not counted as entries."""
