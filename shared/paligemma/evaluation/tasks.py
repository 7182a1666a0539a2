"""Tasks by name: their prompts, how texts are cleaned before comparison, and their metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paligemma.evaluation.predict import Prediction


@dataclass(frozen=True)
class Task:
    """One kind of question.

    Attributes:
        prompt: PaliGemma's prompt; `{}` stands for the text. Source: big_vision, `configs/proj/paligemma/README.md`.
        metrics: names of the metrics; the first decides.
        clean: applied to answers and references before they are compared.
        needs_text: whether the prompt needs a text.
    """

    prompt: str
    metrics: tuple[str, ...]
    clean: Callable[[str], str] = str.strip
    needs_text: bool = True

    def ask(self, text: str) -> str:
        """The prompt for a text, which may already be a prompt; empty if the text is needed but missing."""
        if not text.strip() and self.needs_text:
            return ""
        asked, lead = text.strip(), self.prompt.split("{}")[0].strip()
        return asked if lead and asked.startswith(lead) else self.prompt.format(asked).strip()

    def cleaned(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """The predictions, cleaned for the metrics."""
        return [
            dataclasses.replace(
                p,
                target=self.clean(p.target),
                prediction=self.clean(p.prediction),
                references=tuple(map(self.clean, p.references)),
            )
            for p in predictions
        ]


TASKS: dict[str, Task] = {
    "": Task("{}", ("exact_match",)),
    "vqa": Task("answer en {}", ("vqa_accuracy", "exact_match")),
    "caption": Task("caption en {}", ("cider", "bleu", "rouge_l"), needs_text=False),
    "docvqa": Task("answer en {}", ("anls", "exact_match")),
    "chartqa": Task("answer en {}", ("relaxed_accuracy", "exact_match")),
    "detect": Task("detect {}", ("mean_average_precision", "box_f1")),
    "segment": Task("segment {}", ("mask_iou", "mask_ciou", "box_f1")),
    "classify": Task("{}", ("exact_match", "multiple_choice"), lambda text: text.strip().rstrip(".").lower()),
    "ocr": Task("ocr {}", ("anls", "exact_match"), needs_text=False),
}
