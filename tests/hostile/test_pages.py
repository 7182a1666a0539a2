"""Every page says what may run in it and be loaded by it: its template's own script and style, and pictures that it holds."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from paligemma.reports import page

TEMPLATES = Path(page.__file__).parent / "templates"
PAGES = sorted(file.name for file in TEMPLATES.glob("*.html") if '{% extends "page.html" %}' in file.read_text())


class Parts(HTMLParser):
    """What a page holds that a policy decides about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str]] = []
        self.policies: list[str] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(given["content"])
        self._in = tag if tag in self.inline and given.get("type") != "application/json" else ""
        self.attributes += [(tag, name) for name in given]
        if self._in:
            self.inline[tag].append("")

    def handle_data(self, data: str) -> None:
        if self._in:
            self.inline[self._in][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in = ""


def rules_of(policy: str) -> dict[str, list[str]]:
    return {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}


def hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def filled(template: str) -> str:
    """A page, as far as it is the same whatever is in it: blocks without their loops and values."""
    environment = page._environment()
    source = "".join(reversed(list(page._sources(template))))
    text = re.sub(r"\{%.*?%\}|\{\{(?! policy).*?\}\}", "", source, flags=re.DOTALL)
    return environment.from_string(text).render(policy=page.content_policy(template))


@pytest.mark.parametrize("template", PAGES)
def test_every_script_and_style_of_a_page_has_its_hash_in_the_policy(template: str) -> None:
    parts = Parts(filled(template))
    (policy,) = parts.policies
    rules = rules_of(policy)
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        assert sorted(map(hash_of, parts.inline[element])) == sorted(rules.get(rule, []))
    assert "unsafe" not in policy


@pytest.mark.parametrize("template", sorted(file.name for file in TEMPLATES.glob("*.html")))
def test_no_template_has_what_no_hash_can_cover(template: str) -> None:
    source = (TEMPLATES / template).read_text()
    attributes = {name for _, name in Parts(re.sub(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", "", source, flags=re.DOTALL)).attributes}
    assert not {name for name in attributes if name == "style" or name.startswith("on")}
    assert 'setAttribute("style"' not in source
    for element in ("script", "style"):
        for block in re.findall(f"<{element}>(.*?)</{element}>", source, re.DOTALL):
            assert "{{" not in block, "the hash is of the template's text"
            assert "{%" not in block


def test_the_rendered_page_has_the_hashes_of_what_it_holds_and_of_nothing_that_was_put_in() -> None:
    smuggled = "</script><script>alert(1)</script><style>*{}</style>"
    text = page.render("lineage.html", data={"runs": [smuggled]})
    parts = Parts(text)
    rules = rules_of(html.unescape(parts.policies[0]))
    assert sorted(map(hash_of, parts.inline["script"])) == sorted(rules["script-src"])
    assert sorted(map(hash_of, parts.inline["style"])) == sorted(rules["style-src"])
    unescaped = Parts(text.replace("<h1>", f"{smuggled}<h1>"))
    assert hash_of("alert(1)") in map(hash_of, unescaped.inline["script"])
    assert hash_of("alert(1)") not in rules["script-src"]
    assert text.index("Content-Security-Policy") < text.index("<style") < text.index("<script")
