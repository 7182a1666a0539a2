"""The DAG, and the commands that compile and run it."""

from importlib.util import find_spec
from pathlib import Path

_found, _ours = find_spec("components"), Path(__file__).parents[1] / "components" / "__init__.py"
if _found is None or not _found.origin or not _ours.samefile(_found.origin):
    raise ImportError(
        f"Python finds another package called 'components' before ours, {_ours}: {_found and _found.origin}. "
        "Install paligemma into an environment of its own, or start it in another folder."
    )
