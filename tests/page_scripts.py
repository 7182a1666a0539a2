"""A page of ours with a script of a test in it, which the page's Content-Security-Policy is made to allow."""

from __future__ import annotations

import base64
import hashlib
import re


def with_script(page: str, *scripts: str) -> str:
    """The page with scripts at its end; each is the text of a `<script>` element, with its tags or without."""
    for script in scripts:
        code = re.sub(r"^\s*<script>|</script>\s*$", "", script)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        allowed = f"script-src &#39;sha256-{digest}&#39;"
        page = page.replace("script-src", allowed) if "script-src" in page else page.replace("img-src", f"{allowed}; img-src")
        page = page.replace("</body>", f"<script>{code}</script></body>")
    return page
