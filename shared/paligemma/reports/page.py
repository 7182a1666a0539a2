"""Renders a report's template. Escapes values, and turns pictures into data URIs."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import jinja2.meta
import numpy as np
from markupsafe import escape
from PIL import Image

from paligemma.errors import StoppedError
from paligemma.reports.charts import histogram, line_chart

log = logging.getLogger("paligemma.reports")


def write_page(path: Path, make: Callable[[], str]) -> None:
    """Writes the page that `make` returns.

    A page only shows the files beside it, so a failure to render must not lose the artifact. The error goes into the log, and
    the page shows only the error.
    """
    try:
        text = make()
    except StoppedError:
        raise
    except Exception as error:  # any error of a template or chart: the artifact matters more than its page
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        log.error("%s cannot be rendered, and says so; the files beside it are whole: %s", path.name, what)
        text = f"<!doctype html><meta charset=utf-8><title>{path.name}</title><p>This page cannot be rendered: {escape(what)}. "
        text += "The files beside it are whole.</p>\n"
    path.write_text(text, encoding="utf-8", errors="replace")


def render(template: str, **values: object) -> str:
    """Fills in a template in `templates/`. The value `model` is a line that names the page's model, if any."""
    return _environment().get_template(template).render(policy=content_policy(template), **{"model": "", **values})


@functools.cache
def content_policy(template: str) -> str:
    """The Content-Security-Policy of a page: it loads nothing, and allows only its template's own scripts and styles.

    The hashes cover the template's text, not the page's, so code smuggled in by a value has no hash. A page is a file, and KFP
    shows it in an `iframe` by `srcdoc`, so the policy is a `meta` element in the page (W3C, Content Security Policy Level 3,
    sections 3.3 and 8.4).
    """
    source = "".join(_sources(template))
    rules = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for rule, element in (("script-src", "script"), ("style-src", "style")):
        blocks = re.findall(f"<{element}>(.*?)</{element}>", source, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
        if hashes:
            rules.append(" ".join([rule, *(f"'sha256-{one}'" for one in hashes)]))
    return "; ".join(rules)


def _sources(template: str) -> Iterator[str]:
    """The texts of a template, and of the templates that it extends or imports."""
    source, _, _ = _loader().get_source(_environment(), template)
    yield source
    for other in jinja2.meta.find_referenced_templates(_environment().parse(source)):
        if other is not None:  # whose name a value would say; ours name theirs
            yield from _sources(other)


def image_uri(image: np.ndarray) -> str:
    """A uint8 `[height, width, 3]` picture as a data URI: PNG if small, else JPEG."""
    buffer = io.BytesIO()
    if image.shape[0] <= 96:
        Image.fromarray(image).save(buffer, "PNG")
        kind = "png"
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


TRUE_COLOUR, SUFFIX_COLOUR = (16, 124, 16), (227, 0, 140)
"""Colours of true masks, and of those that a suffix's symbols say: red, green, blue."""


def mask_uri(mask: np.ndarray, colour: tuple[int, int, int]) -> str:
    """A boolean `[height, width]` mask as a data URI of a PNG: a colour inside, transparent outside."""
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, *colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0, bits=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@functools.cache
def _loader() -> jinja2.PackageLoader:
    return jinja2.PackageLoader("paligemma.reports")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=_loader(),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(histogram=histogram, line_chart=line_chart)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["figure"] = lambda value, form="%.4f": "–" if value is None else form % value
    return environment
