"""The command `paligemma lineage`: questions about runs, artifacts and data rows, answered from the files below a root."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paligemma.command_line import make_app
from paligemma.terminal import say, say_json, show_table

if TYPE_CHECKING:
    from paligemma.lineage.index import Index

app = make_app("Ask what made an artifact, what a data row went into, how runs differ; verify, prune, export. No server.")

Root = Annotated[
    str,
    typer.Option(help="Folder or gs:// prefix that runs wrote to; has a folder `lineage`.", envvar="PALIGEMMA_LINEAGE_ROOT"),
]
Roots = Annotated[
    list[str] | None,
    typer.Option(
        "--root",
        help="Folder or gs:// prefix that runs wrote to; repeatable. Roots that these link to are read too.",
        show_default="$PALIGEMMA_LINEAGE_ROOT, or runs/pipeline",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", show_default="a table")]
DEFAULT_ROOT = "runs/pipeline"
_SHOWN_DAMAGED = 20


@app.command("list")
def list_(
    root: Root = DEFAULT_ROOT,
    limit: Annotated[int, typer.Option(help="Maximum number of runs, newest first.", min=1)] = 50,
    status: Annotated[
        Literal["", "succeeded", "failed", "preempted", "running"],
        typer.Option(help="Only runs with this status.", show_default="any"),
    ] = "",
    component: Annotated[str, typer.Option(help="Only runs with this component, e.g. publish.", show_default="any")] = "",
    json: Json = False,
) -> None:
    """List runs, the newest first."""
    from paligemma.lineage.queries import list_runs

    with _opened(root) as index:
        runs = list_runs(index, limit, status, component)
    if json:
        return _print(runs)
    _table(
        ("run", "job", "started", "status", "tasks", "seconds", "metrics"),
        (
            (
                run["run"],
                run["job"],
                run["started"][:19],
                _status(run),
                run["tasks"],
                f"{run['seconds']:.1f}",
                _figures(run["metrics"]),
            )
            for run in runs
        ),
    )


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A run; or an artifact: its folder or address, its hash or its record's, RUN/TASK.")
    ],
    root: Root = DEFAULT_ROOT,
    json: Json = False,
) -> None:
    """Show a run's steps, or all that is recorded of an artifact."""
    from paligemma.lineage.queries import show

    with _opened(root) as index:
        found = show(index, name)
    if json:
        return _print(found)
    if found["kind"] == "run":
        say(f"{found['run']}: {_status(found)}, {found['seconds']:.1f} s, began {found['started'][:19]}")
        return _table(
            ("task", "status", "seconds", "artifact", "tree sha256", "rows"),
            (
                (
                    step["task"],
                    _outcome(step),
                    f"{step['attempts'][-1]['seconds']:.1f}",
                    "\n".join(made["output"] for made in step["artifacts"]),
                    "\n".join(made["tree_sha256"][:16] for made in step["artifacts"]),
                    "\n".join(str(made["rows"] or "") for made in step["artifacts"]),
                )
                for step in found["steps"]
            ),
        )
    record, used = found["record"], found["used_by"]
    made = record["artifact"] or {"type": "nothing", "tree_sha256": "", "bytes": 0, "rows": None, "files": []}
    say(f"{made['type']} {record['output']}")
    _fields(
        {
            "tree sha256": made["tree_sha256"],
            "record": record["sha256"],
            "signed": "yes" if record["signature"] else "no",
            "bytes": made["bytes"],
            "rows": made["rows"],
            "made by": f"{record['run']}/{record['task']}, attempt {record['attempt']}: {record['status']}",
            "seconds": record["seconds"],
            **_code(record["producer"]),
            "metrics": _figures(record["metrics"]),
            "parameters": record["producer"]["parameters"],
        }
    )
    _table(("input", "from", "sha256"), ((one["role"], one["uri"], one["sha256"][:16]) for one in record["inputs"]))
    _table(("file", "bytes", "sha256"), ((file["path"], file["bytes"], file["sha256"][:16]) for file in made["files"]))
    _table(("used by", "as", "made"), ((f"{one['run']}/{one['task']}", one["role"], one["output"]) for one in used))


@app.command()
def trace(
    name: Annotated[str, typer.Argument(help="An artifact: its folder or address, its hash or its record's, RUN/TASK.")],
    root: Roots = None,
    json: Json = False,
) -> None:
    """Trace an artifact back: rows, checkpoint, code, image and parameters of every step that it comes from."""
    from paligemma.lineage.queries import trace

    with _opened_all(root) as index:
        found = trace(index, name)
    if json:
        return _print(found)
    _say_sources(found)
    say("Steps")
    for step in found["steps"]:
        say()
        say(f"{step['type'] or 'nothing'} {step['output']}")
        say(f"  tree sha256  {step['tree_sha256']}")
        say(f"  made by      {step['component']} in {step['run']}/{step['task']} ({step['status']})")
        for label, value in _code(step).items():
            say(f"  {label:<12} {value}")
        for path, sha256 in step["weights"].items():
            say(f"  weights      {path} sha256 {sha256}")
        if step["metrics"]:
            say(f"  metrics      {_figures(step['metrics'])}")
        for key, value in step["parameters"].items():
            say(f"  parameter    {key} = {value}")
        for one in step["inputs"]:
            say(f"  from         {one['role']}: {one['uri']} sha256 {one['sha256']}")
    for one in found["missing"]:
        say(f"The record {one['record'][:16]} of {one['uri']} is not there: what it was made from is not known here.")
    _say_scope(found)


@app.command()
def impact(
    name: Annotated[
        str,
        typer.Argument(help="An artifact or a source; a row's id or FILE:LINE; an image's file, name or hash."),
    ],
    root: Roots = None,
    json: Json = False,
) -> None:
    """Name every model, evaluation and release that an artifact, a data row or an image went into."""
    from paligemma.lineage.impact import impact

    with _opened_all(root) as index:
        found = impact(index, name)
    if json:
        return _print(found)
    for row in found.get("rows", ()):
        say(f"row {row['row']}, {_line(row)}, image {row['image']}")
    for one in found.get("rejected", ()):
        say(f"line {one['line']} was rejected in {one['run']}/{one['task']}: {one['code']}, {one['message']}")
    titles = {
        "models": "Models made from it",
        "validated": "Models only validated with it",
        "evaluations": "Evaluations",
        "releases": "Releases",
        "others": "Other artifacts",
    }
    for group, title in titles.items():
        say()
        say(f"{title}: {len(found[group])}")
        if found[group]:
            _table(
                ("run", "artifact", "tree sha256", "as"),
                ((one["run"], one["output"], one["tree_sha256"][:16], ", ".join(one["as"])) for one in found[group]),
            )
    _say_scope(found)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A run.")],
    after: Annotated[str, typer.Argument(help="Another run.")],
    root: Root = DEFAULT_ROOT,
    json: Json = False,
) -> None:
    """Say how two runs differ: parameters, code, data rows, metrics."""
    from paligemma.lineage.diff import diff

    with _opened(root) as index:
        found = diff(index, before, after)
    if json:
        return _print(found)
    for task, sides in found["tasks"].items():
        if "only_in" in sides:
            say()
            say(f"{task}: only in {sides['only_in']}")
            continue
        say()
        say(f"{task}: " + ("" if sides else "the same"))
        rows = sides.pop("rows", None)
        for kind, changed in sides.items():
            for one in changed:
                say(f"  {kind:<11} {one['key']}: {one['before']} -> {one['after']}")
        if rows:
            say(f"  rows        {rows['added']} added, {rows['removed']} removed, {rows['changed']} changed")
            for kind in ("added", "removed"):
                for row in rows["examples"][kind]:
                    say(f"    {kind:<9} {_line(row)}, {row['image']}, row {row['row']}")
            for pair in rows["examples"]["changed"]:
                old, new = (f"{_line(row)}, row {row['row']}" for row in (pair["before"], pair["after"]))
                say(f"    changed   {pair['after']['image']}: {old} -> {new}")


@app.command()
def verify(
    root: Root = DEFAULT_ROOT,
    key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM) that every record must be signed with.", show_default="signatures are not checked"),
    ] = None,
    seen: Annotated[
        Path | None,
        typer.Option(
            help="File to keep elsewhere, with the hashes of all records: written when all is well, and compared with from "
            "then on. It shows when the newest records are gone.",
            show_default="only what the root itself tells",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Hash everything anew: find what is missing, altered or orphaned, and where the chain of records breaks. Exits with 3."""
    from paligemma.artifacts.signing import read_public_key
    from paligemma.lineage.last_seen import read_seen, write_seen
    from paligemma.lineage.verify import verify

    public = None if key is None else read_public_key(key)
    before = {} if seen is None else read_seen(seen)
    found = verify(root, public, before)
    if json:
        _print(found.to_json())
    else:
        for problem in found.problems:
            say(f"{problem.kind}: {problem.where}")
            say(f"  {problem.what}")
        say(f"{found.records} records, {found.artifacts} artifacts, {found.bytes / 1e6:.1f} MB: "
                   + (f"{len(found.problems)} problems" if found.problems else "all as recorded"))  # fmt: skip
        notes = {
            "pruned": found.pruned,
            "replaced by later attempts": found.replaced,
            "made below other roots": found.elsewhere,
        }
        for what, named in (notes | {"without an end (under way, or killed)": found.unfinished}).items():
            if named:
                say(f"{what}: {len(named)}")
    if found.problems:
        raise typer.Exit(3)
    if seen is not None:
        write_seen(seen, found.hashes)


@app.command()
def prune(
    root: Root = DEFAULT_ROOT,
    older_than: Annotated[float, typer.Option(help="Days; what is younger stays.", min=0)] = 30.0,
    registry: Annotated[
        list[str] | None,
        typer.Option(help="Another root, whose releases count too; repeatable.", show_default="none"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run/--delete", help="Only say what could be deleted, or delete it.")] = True,
    json: Json = False,
) -> None:
    """Say which artifacts no release was made from, or delete them. Records and lists of rows always stay."""
    from contextlib import ExitStack

    from paligemma.lineage.prune import delete, plan
    from paligemma.lineage.several_roots import open_linked

    with ExitStack() as opened:
        indexes, unseen = open_linked([root, *(registry or ())])
        index, *others = [opened.enter_context(one) for one in indexes]
        for one in indexes:
            _say_damaged(one)
        for place in unseen:
            say(f"not looked into {place}, where steps recorded what they made from this: it is gone, or moved", error=True)
        planned = plan(index, older_than, others)
        if not dry_run:
            delete(index, planned)
    if json:
        return _print(planned | {"deleted": not dry_run})
    _table(
        ("artifact", "type", "MB", "run"),
        ((one["place"], one["type"], f"{one['bytes'] / 1e6:.1f}", one["run"]) for one in planned["delete"]),
    )
    for one in planned["not_ours"]:
        say(f"not ours, and left alone: {one['place']}: {one['why']}")
    verb = "could be deleted" if dry_run else "deleted"
    stay = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in planned["stay"].items())
    say(f"{len(planned['delete'])} artifacts, {planned['bytes'] / 1e6:.1f} MB, {verb}.")
    say(f"{planned['releases']} releases; what stays: {stay}.")


@app.command()
def export(
    root: Root = DEFAULT_ROOT,
    openlineage: Annotated[
        bool, typer.Option("--openlineage", help="As OpenLineage RunEvents, the only format.", show_default="required")
    ] = False,
    run: Annotated[list[str] | None, typer.Option(help="Run to export; repeatable.", show_default="all")] = None,
    output: Annotated[Path | None, typer.Option(help="File for the events, one a line.", show_default="print them")] = None,
    url: Annotated[
        str, typer.Option(help="Send them to this receiver; its key from $OPENLINEAGE_API_KEY.", show_default="not sent")
    ] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of the jobs.")] = "paligemma",
    repository: Annotated[str, typer.Option(help="Web address of the source code.", show_default="only its commit")] = "",
    json: Json = False,
) -> None:
    """Export runs to a file, or to a catalogue over HTTP."""
    from paligemma.errors import InputError
    from paligemma.lineage.openlineage import events, send, to_line
    from paligemma.lineage.queries import run_names
    from paligemma.storage.atomic import write_file

    if not openlineage:
        raise InputError("No format was chosen.", expected="--openlineage")
    with _opened(root) as index:
        runs = run or run_names(index)[::-1]
        found = events(index, runs, namespace, repository)
        if url:
            count, where = send(url, found), url
        else:
            lines = [to_line(event) for event in found]
            count, where = len(lines), str(output or "standard output")
            if output is None:
                for line in [f"[{','.join(lines)}]"] if json else lines:
                    say_json(line)
                return
            write_file(output, "".join(f"{line}\n" for line in lines))
    if json:
        return _print({"events": count, "runs": len(runs), "to": where})
    say(f"{count} events of {len(runs)} runs to {where}")


@app.command()
def report(
    root: Root = DEFAULT_ROOT,
    output: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("lineage.html"),
    limit: Annotated[int, typer.Option(help="Maximum number of runs, newest first.", min=1)] = 200,
    rows: Annotated[int, typer.Option(help="Most data rows to search in, over all lists.", min=0)] = 20_000,
    json: Json = False,
) -> None:
    """Write one page with all runs: graph, search, comparison. It opens from disk, without network."""
    from paligemma.lineage.page import page_data, render_page
    from paligemma.storage.atomic import write_file

    with _opened(root) as index:
        data = page_data(index, limit, rows, beside=output.absolute().parent)
    if json:
        return _print(data)
    write_file(output, render_page(data))
    say(f"wrote {output}: {len(data['runs'])} runs")


@contextmanager
def _opened(root: str) -> Iterator[Index]:
    """Opens the index of a root. First warns about unreadable records; answers use the rest."""
    from paligemma.lineage.index import Index

    with Index(root) as index:
        _say_damaged(index)
        yield index


@contextmanager
def _opened_all(roots: list[str] | None) -> Iterator[Index]:
    """Opens the index of several roots, and of roots that these link to."""
    import os

    from paligemma.artifacts.recording import ROOT_VARIABLE
    from paligemma.lineage.several_roots import open_roots

    with open_roots(roots or [os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT]) as index:
        _say_damaged(index)
        yield index


def _line(row: dict) -> str:
    """Where a row is in its data, in words."""
    return f"line {row['line']}" + (f" of {row['source']}" if row.get("source") else "")


def _say_damaged(index: Index) -> None:
    damaged = index.damaged()
    for where, why in damaged[:_SHOWN_DAMAGED]:
        say(f"no record: {where}: {why}", error=True)
    if len(damaged) > _SHOWN_DAMAGED:
        say(f"no records: {len(damaged) - _SHOWN_DAMAGED} more; `paligemma lineage verify` names all", error=True)


def _say_sources(found: dict) -> None:
    """Prints the sources of a chain: external inputs, the fetched checkpoint, code and images."""
    say("Sources")
    for one in found["sources"]:
        say(f"  {one['role']}: {one['uri']} sha256 {one['sha256']}")
    for step in found["steps"]:
        if step["component"] == "fetch_checkpoint":
            say(f"  checkpoint: {step['parameters'].get('source', step['output'])} tree sha256 {step['tree_sha256']}")
            for path, sha256 in step["weights"].items():
                say(f"    {path} sha256 {sha256}")
    for label, key in (("code", "git sha"), ("image", "image")):
        for value in dict.fromkeys(_code(step)[key] for step in found["steps"]):
            say(f"  {label}: {value}")
    say()


def _say_scope(answer: dict) -> None:
    """Prints the scope of an answer."""
    say()
    for root in answer["looked_into"]:
        say(f"Looked into {root}.")
    for root in answer["not_looked_into"]:
        say(f"Not looked into {root}: steps of these chains left records there, and it is gone, moved or not to be read.")
    if answer["not_looked_into"]:
        say("If it was moved, name its new place with --root too.")
    say("What was done with copies elsewhere is recorded there: name such a root with --root too.")


def _print(answer: object) -> None:
    from paligemma.lineage.queries import to_json

    say_json(to_json(answer))


def _table(names: tuple[str, ...], lines: Iterable[tuple[object, ...]]) -> None:
    """Prints a table, uncut unless on a terminal; prints nothing without lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*("" if value is None else str(value) for value in line))
    show_table(table)


def _fields(values: dict[str, object]) -> None:
    for label, value in values.items():
        if isinstance(value, dict):
            for key, one in value.items():
                say(f"  {label:<12} {key} = {one}")
        elif value not in (None, ""):
            say(f"  {label:<12} {value}")


def _code(producer: dict) -> dict[str, object]:
    dirty = {True: " with changes", False: "", None: ""}[producer["git_dirty"]]
    return {"git sha": f"{producer['git_sha'] or 'unknown'}{dirty}", "image": producer["image"] or "none"}


def _status(run: dict) -> str:
    cached = f", {len(run['cached'])} cached" if run["cached"] else ""
    return run["status"] + (f" ({', '.join(run['failed'])})" if run["failed"] else "") + cached


def _outcome(step: dict) -> str:
    tries = f" in {len(step['attempts'])} attempts" if len(step["attempts"]) > 1 else ""
    if step["cached_from"]:
        return f"cached from {step['cached_from']['run']}"
    return step["status"] + tries + (f": {step['error']['message']}" if step["error"] else "")


def _figures(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
