"""KFP interface of `summarize`."""

from kfp import dsl

from components.kfp_component import kfp_component


@kfp_component
def summarize(
    status: dsl.PipelineTaskFinalStatus,
    summary: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    root: str = "",
    expected: str = "",
    artifact_root: str = "",
    run: str = "",
    run_task: str = "",
):
    """Summarizes the run, and posts the result to the address in the environment; for dsl.ExitHandler.

    Args:
        root: Folder or gs:// prefix with the lineage of the run; empty: artifact_root, else the runner's own location.
        expected: Comma-separated tasks that every run has; one without a record counts as failed.
    """
    import json

    from components.artifacts import copy_file, mirror_record, output_location, run_name
    from components.summarize.main import summarize_run
    from paligemma.artifacts.recording import default_root
    from paligemma.storage.location import parse_location

    output = output_location(summary, artifact_root, run, run_task)
    said = {"state": status.state, "error": status.error_message or None, "job": status.pipeline_job_resource_name}
    summarize_run(
        output=output,
        root=root or str(default_root(parse_location(output))),
        run=run_name(summary, run),
        status=json.dumps(said),
        expected=expected,
    )
    mirror_record(summary, output)
    copy_file(output, "report.html", report.path)
