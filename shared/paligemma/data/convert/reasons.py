"""Codes for skipped entries and for notes about used ones, with their texts for summary, list and page."""

from __future__ import annotations

from paligemma.data import rows

REASONS = {
    "not_an_object": "the entry is not a JSON object",
    "image_id_missing": "the annotation does not say which image it is of, in words or in a whole number",
    "image_unlisted": "the file lists no image of that id",
    "image_ambiguous": "the file lists several different images of that id",
    "image_unnamed": "the image has no file name that can be used",
    "image_path_unsafe": "the image's name is absolute, plain http or another address, or leads out of the image folder",
    "caption_missing": "the annotation has no caption, or one that is neither text nor a number",
    "question_id_missing": "the annotation does not say which question it answers, in words or in a whole number",
    "question_unlisted": "the questions have none of that id",
    "question_ambiguous": "the questions have several different ones of that id",
    "question_missing": "the question of that id has no text",
    "image_disagrees": "question and annotation are of different images",
    "answer_missing": "the annotation has no answer that is text or a number",
    "category_missing": "the annotation has no category",
    "category_unlisted": "the file lists no category of that id",
    "category_ambiguous": "the file lists several different categories of that id",
    "category_unnamed": "the category has no name, or one with `;` or `<` in it, which would end it in the suffix",
    "crowd": "the box is around a crowd, which is no single object (left out on purpose)",
    "box_missing": "the annotation has no box, and no polygon to take one from",
    "box_malformed": "the box is not four finite numbers: x, y, width, height",
    "box_empty": "the box has a zero or negative width or height",
    "box_outside": "the box lies outside of the image",
    "box_too_small": "the box is so small that its corners are the same <loc> (a step is 1/1023 of the image)",
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
    "turns_missing": "the entry has no conversation, or several",
    "turns_malformed": "the conversation is not of turns that say who speaks, and text or parts",
    "turns_several": "the conversation has several questions, and later ones may need earlier ones "
    "(left out on purpose; see --first-turn)",
    "role_other": "a turn is neither of the user, nor of the assistant, nor of the system",
    "question_unasked": "no question comes before the answer",
    "answer_unlearned": "there is no answer, or one that is marked as not to be learned",
    "image_in_answer": "the answer has an image: the model answers with text",
    "marks_disagree": "there are more places for images than images",
    "media_other": "the conversation has a video, or sound (left out on purpose)",
    "boxes_apart": "boxes are apart from the text, which has <bbox> or <ref-object> in their place",
    "text_nul": "image, prefix or suffix has a NUL character",
    "format_other": "the file's format is not one that prepare_data reads (left out on purpose)",
    "label_missing": "the picture is in no label's folder (left out on purpose)",
    **{
        code: rows.REASONS[code]
        for code in (
            "line_too_long",
            "encoding_invalid",
            "json_invalid",
            "key_repeated",
            "suffix_empty",
            "image_none",
            "images_several",
            "image_unreadable",
        )
    },
}
"""Reason codes of `OUTPUT.skipped.jsonl`, and what each means."""

ON_PURPOSE = frozenset(
    ("crowd", "format_other", "label_missing", "turns_several", "media_other", "image_none", "images_several")
)
"""Reasons that are not faults of the data: they are counted and listed, but do not make a conversion fail."""

NOTES = {
    "box_clipped": "boxes reach beyond their image, and end at its edge now (if many do: is the order x, y, width, height?)",
    "box_from_polygon": "boxes were taken from the polygons of the segmentation, as the annotation has no bbox",
    "boxes_turned": "images have an EXIF orientation, and boxes in stored pixels: the boxes were turned with the image",
    "boxes_upright": "images have an EXIF orientation, and boxes in displayed pixels already: the boxes are as they were",
    "orientation_unclear": "images have an EXIF orientation, and sizes that do not tell in which pixels the boxes are",
    "size_from_file": "images have no width and height in the annotations: those of the image file were taken",
    "size_scaled": "images have another size than the annotations say, in the same proportions: boxes were scaled",
    "size_unchecked": "images could not be opened: whether their sizes and orientations agree is not known",
    "image_entry_unusable": "entries of the images have no id: no annotation can be of them",
    "entry_unusable": "questions or categories have no id: no annotation can be of them",
    "entry_repeated": "images, questions or categories are listed more than once, alike",
    "name_backslashes": "image names have backslashes, which are slashes now",
    "name_absolute": "image names are absolute and inside the image folder: they are relative to it now",
    "name_from_url": "images have no file_name: the last two parts of their coco_url were taken, as for LVIS",
    "answer_dropped": "answers are empty, or neither text nor numbers, and were dropped beside others that can be used",
    "cell_of_many_lines": "rows have a cell of several lines; if none should, a quote is not closed",
    "system_dropped": "conversations have a system prompt, which PaliGemma has no place for: it was left out",
    "later_turns_dropped": "turns follow a conversation's first question and answer, and were left out (--first-turn)",
    "image_moved": "questions have their image amid the text: PaliGemma sees it before the text",
    "hidden_left_out": "files and folders are hidden, or of the system (.ipynb_checkpoints, __MACOSX, Thumbs.db): left out",
    "link_left_out": "folders are links, which are not followed",
}
"""Notes about used entries, and about things that are not counted as entries."""
