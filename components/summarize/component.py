"""KFP interface of `summarize`."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def summarize(
    status: dsl.PipelineTaskFinalStatus,
    summary: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    root: str = "",
    run: str = "",
    artifact_root: str = "",
    run_task: str = "",
):
    """Writes what became of the run, and posts it to the address in the environment; for dsl.ExitHandler.

    Args:
        root: Folder or gs:// prefix with the lineage of the run; empty: artifact_root, else where the runner puts artifacts.
        run: Name of the run; empty: the first part of run_task.
        artifact_root: Folder or gs:// prefix that artifacts go to; empty: where the runner puts them.
        run_task: Name of the run and of the task in it; with artifact_root, where the artifact goes below it.
    """
    import json
    import shutil

    from components.artifacts import mirror_record, output_location
    from components.summarize.main import run as summarize_run
    from paligemma.lineage.artifact import localize
    from paligemma.lineage.attempt import default_root
    from paligemma.storage.location import parse_location

    output = output_location(summary, artifact_root, run_task)
    said = {"state": status.state, "error": status.error_message or None}
    summarize_run(
        output=output,
        root=root or str(default_root(parse_location(output))),
        run=run or run_task.partition("/")[0],
        status=json.dumps(said),
    )
    mirror_record(summary, output)
    shutil.copyfile(localize(output) / "report.html", report.path)
