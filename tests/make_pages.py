"""Makes what pages show of the code: the pipeline's picture in README.md, and the Python reference in shared/README.md.

Run it after a change of the pipeline or of a docstring. `tests/unit/test_made_pages.py` fails when a page is not current.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
CORE = REPOSITORY / "shared" / "paligemma"
INTERFACE = {
    "model.py": ("load", "Model", "Answer"),
    "decoding/settings.py": ("DecodeSettings",),
    "decoding/decode.py": ("Decoded",),
    "errors.py": ("PaliGemmaError", "InputError", "DamagedError", "StoppedError"),
}
"""What users call, by the file of the core that it is in. The first file's names are those of the package itself."""
SECTIONS = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)


def made_pages() -> dict[Path, str]:
    """Each page with a made part, as it should be."""
    parts = {
        REPOSITORY / "README.md": ("DAG", draw_pipeline()),
        REPOSITORY / "shared/README.md": ("REFERENCE", describe_core()),
    }
    return {page: put(page.read_text(), mark, text) for page, (mark, text) in parts.items()}


def put(page: str, mark: str, text: str) -> str:
    """A page with a text between its two marks."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}{text.strip()}\n{end}{rest.split(end)[1]}"


def draw_pipeline() -> str:
    """The tasks of pipeline.yaml as a Mermaid flow chart; an arrow is left out where others lead the same way."""
    document = next(yaml.safe_load_all((REPOSITORY / "pipeline.yaml").read_text()))
    inner = {name: one["dag"]["tasks"] for name, one in document["components"].items() if "dag" in one}
    tasks = dict(document["root"]["dag"]["tasks"])
    for of_group in inner.values():
        tasks |= of_group
    groups = {
        name: inner[task["componentRef"]["name"]] for name, task in tasks.items() if task["componentRef"]["name"] in inner
    }
    before = {name: set(task.get("dependentTasks", ())) for name, task in tasks.items()}
    order = sorted(tasks.keys() - groups.keys(), key=lambda name: (name == "summarize", len(everything(name, before)), name))
    order.remove("publish")
    order.insert(-1, "publish")  # it is in a group, and waits for what the group waits for
    nodes = [f'    {identity(name)}["{tasks[name]["taskInfo"]["name"].replace("-", "_")}"]' for name in order]
    arrows = []
    for name in [*order, *groups]:
        for earlier in sorted(shortest(before[name], before)):
            if earlier in groups:  # the exit step, which waits for the end of a group
                said = tasks[earlier]["taskInfo"]["name"]
                arrows += [f'    {identity(end)} -. "{said}" .-> {identity(name)}' for end in ends(groups[earlier], groups)]
            elif name in groups:  # a condition
                said = tasks[name]["taskInfo"]["name"]
                arrows += [f'    {identity(earlier)} -- "{said}" --> {identity(only)}' for only in groups[name]]
            else:
                arrows.append(f"    {identity(earlier)} --> {identity(name)}")
    return "\n".join(["```mermaid", "flowchart LR", *nodes, *arrows, "```"])


def identity(name: str) -> str:
    """A task's name in the chart, where a hyphen is part of an arrow."""
    return name.replace("-", "_")


def shortest(names: set[str], before: dict[str, set[str]]) -> set[str]:
    """The tasks that no other one of them waits for."""
    return {name for name in names if not any(name in everything(other, before) for other in names - {name})}


def everything(name: str, before: dict[str, set[str]]) -> set[str]:
    """All tasks that come before one."""
    return before[name] | {earlier for one in before[name] for earlier in everything(one, before)}


def ends(tasks: dict, groups: dict[str, dict]) -> list[str]:
    """The tasks of a group that none of it waits for; of a group in it, that one's."""
    awaited = {name for task in tasks.values() for name in task.get("dependentTasks", ())}
    last = sorted(tasks.keys() - awaited)
    return [end for name in last for end in (ends(groups[name], groups) if name in groups else [name])]


def describe_core() -> str:
    """The reference of what users call, and each module of the core with its first sentence."""
    lines = ["## Reference", ""]
    for file, names in INTERFACE.items():
        tree = ast.parse((CORE / file).read_text())
        found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        module = "" if file == "model.py" else f"{file.removesuffix('.py').replace('/', '.')}."
        for name in names:
            lines += describe(found[name], f"paligemma.{module or ('model.' if name == 'Answer' else '')}{name}")
    lines += ["## Packages", "", "| package | what |", "| --- | --- |"]
    for file in sorted(CORE.glob("*/__init__.py")):
        said = ast.get_docstring(ast.parse(file.read_text())) or ""
        lines.append(f"| `paligemma.{file.parent.name}` | {first_paragraph(said)} |")
    return "\n".join(lines)


def describe(node: ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[str]:
    """A class with its public methods, or a function."""
    bases = ", ".join(map(ast.unparse, node.bases)) if isinstance(node, ast.ClassDef) else ""
    yield from (f"### {name}", "")
    if isinstance(node, ast.FunctionDef):
        yield from signature(node)
    elif "Error" in bases or bases == "Exception":
        code = next(ast.unparse(one.value) for one in node.body if isinstance(one, ast.Assign))
        yield from (f"Base: `{bases}`. Exit code of a command that it ends: {code}.", "")
    yield from sections(ast.get_docstring(node) or "")
    for method in node.body if isinstance(node, ast.ClassDef) and not bases else ():
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            yield from (f"#### {name.rpartition('.')[2]}.{method.name}", "", *signature(method))
            yield from sections(ast.get_docstring(method) or "")


def signature(function: ast.FunctionDef) -> Iterator[str]:
    """A function's head, a parameter on each line if it is long."""
    plain = [one for one in function.args.args if one.arg != "self"]
    after = function.args.kwonlyargs
    defaults = [None] * (len(plain) - len(function.args.defaults)) + function.args.defaults + function.args.kw_defaults
    shown = [
        f"{ast.unparse(one)}{'' if default is None else f' = {ast.unparse(default)}'}"
        for one, default in zip(plain + after, defaults, strict=True)
    ]
    shown[len(plain) : len(plain)] = ["*"] if after else []
    head = f"{function.name}({', '.join(shown)}) -> {ast.unparse(function.returns)}"
    if len(head) > 100:
        head = "\n".join([f"{function.name}(", *(f"    {one}," for one in shown), f") -> {ast.unparse(function.returns)}"])
    yield from ("```python", head, "```", "")


def sections(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: its text, then a list for each of its sections."""
    text, *rest = SECTIONS.split(docstring)
    yield from (text.strip(), "")
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        yield from (f"{title}:", "")
        # A line that is indented more than the first goes on with the entry before.
        entries = re.split(r"\n(?=\S)", textwrap.dedent(body).strip())
        for entry in entries:
            name, _, what = " ".join(line.strip() for line in entry.splitlines()).partition(": ")
            yield f"- `{name}`: {what}"
        yield ""


def first_paragraph(docstring: str) -> str:
    """What a module says of itself at first, on one line."""
    return " ".join(docstring.partition("\n\n")[0].split())


if __name__ == "__main__":
    for page, text in made_pages().items():
        page.write_text(text)
        print(f"wrote {page.relative_to(REPOSITORY)}")
