"""Renders a report's template. Values are escaped; pictures become data URIs."""

from __future__ import annotations

import base64
import functools
import io

import jinja2
import numpy as np
from PIL import Image

from paligemma.reports.charts import histogram, line_chart


def render(template: str, **values: object) -> str:
    """The page of a template in `templates/`, filled in."""
    return _environment().get_template(template).render(**values)


def image_uri(image: np.ndarray) -> str:
    """A uint8 `[height, width, 3]` picture as a data URI: PNG when small, else JPEG."""
    buffer = io.BytesIO()
    if image.shape[0] <= 96:
        Image.fromarray(image).save(buffer, "PNG")
        kind = "png"
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("paligemma.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(histogram=histogram, line_chart=line_chart)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    return environment
