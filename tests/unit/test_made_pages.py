"""The parts of pages that are made from the code are current, and say what the code says."""

from __future__ import annotations

import ast
import re

import pytest
from make_pages import CORE, INTERFACE, REPOSITORY, describe, draw_pipeline, made_pages, sections, shortest

import paligemma

PAGES = made_pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_is_what_the_code_says(page) -> None:
    assert page.read_text() == PAGES[page], "run make pages"


def test_the_picture_has_every_task_once_and_only_arrows_that_are_needed() -> None:
    picture = draw_pipeline()
    assert re.findall(r'\["(.*?)"\]', picture) == [
        "fetch_checkpoint",
        "preflight",
        "prepare train data",
        "prepare validation data",
        "evaluate base",
        "finetune",
        "evaluate tuned",
        "publish",
        "summarize",
    ]
    assert set(re.findall(r"^ {4}(\S+) .*> (\S+)$", picture, re.MULTILINE)) == {
        ("fetch_checkpoint", "preflight"),
        ("fetch_checkpoint", "prepare_data"),
        ("fetch_checkpoint", "prepare_data_2"),
        ("preflight", "finetune"),
        ("prepare_data", "finetune"),
        ("prepare_data_2", "finetune"),
        ("prepare_data_2", "evaluate"),
        ("evaluate", "evaluate_2"),
        ("finetune", "evaluate_2"),
        ("evaluate_2", "publish"),
        ("publish", "summarize"),
    }


def test_an_arrow_that_others_lead_along_is_left_out() -> None:
    assert shortest({"a", "b"}, {"a": set(), "b": {"a"}}) == {"b"}
    assert shortest({"a", "b"}, {"a": set(), "b": set()}) == {"a", "b"}


def test_the_reference_has_what_the_package_offers() -> None:
    assert {*paligemma.__all__} <= {*INTERFACE["model.py"]}
    text = PAGES[REPOSITORY / "shared/README.md"]
    tree = ast.parse((CORE / "model.py").read_text())
    (model,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Model"]
    public = {one.name for one in model.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")}
    assert set(re.findall(r"^#### Model\.(\w+)$", text, re.MULTILINE)) == public


def test_a_docstring_becomes_a_text_and_lists() -> None:
    function = ast.parse('''
def f(a: int, *, b: str = "x") -> str:
    """Does it.

    Args:
        a: first,
            on two lines.
        b: second.

    Raises:
        E: never.
    """
''').body[0]
    assert "\n".join(describe(function, "m.f")) == (
        "### m.f\n\n```python\nf(a: int, *, b: str = 'x') -> str\n```\n\nDoes it.\n\n"
        "Args:\n\n- `a`: first, on two lines.\n- `b`: second.\n\nRaises:\n\n- `E`: never.\n"
    )
    assert list(sections("Alone.")) == ["Alone.", ""]
