"""The DAG: fetch a checkpoint, prepare two splits, fine-tune, evaluate base and tuned model, and publish the better one."""

# Inside a pipeline a call of a component gives a task, and a parameter is a channel: KFP's decorators have the types of the
# functions that they decorate.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from collections.abc import Callable

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.fetch_checkpoint.component import fetch_checkpoint
from components.finetune.component import finetune
from components.preflight.component import preflight
from components.prepare_data.component import prepare_data
from components.publish.component import publish
from components.summarize.component import summarize
from pipelines.caching import check_caching


def make_pipeline(place_task: Callable[[str, dsl.PipelineTask], None] = lambda step, task: None) -> BaseComponent:
    """The DAG for one profile's machines.

    Args:
        place_task: given a step's name and its task, sets the task's image, accelerator and retries.
    """

    @dsl.pipeline(name="paligemma-finetune", description="Fine-tune PaliGemma and compare it with its base.")
    def finetune_pipeline(
        train_data: str,
        validation_data: str,
        source: str,
        sha256: str = "",
        tokenizer: str = "",
        precision: str = "float16",
        image_size: int = 0,
        images: str = "",
        recipe: str = "",
        target: str = "cpu",
        disk_budget: str = "",
        max_text_tokens: int = 128,
        max_reject_fraction: float = 0.1,
        grey_range: str = "",
        images_per_example: int = 1,
        task: str = "",
        metrics: str = "",
        margin: float = 0.0,
        mask_decoder: str = "",
        batch_size: int = 32,
        decoding: str = "",
        registry: str = "",
        formats: str = "big_vision",
        vertex_model: str = "",
        serving: str = "",
        artifact_root: str = "",
        fresh: bool = False,
    ):
        """Fine-tunes a checkpoint.

        Args:
            train_data: JSONL file of {"image", "prefix", "suffix"} rows to train on; {date} is the UTC day the run began on.
                Or a mixture, as YAML text: a list of data, weight and images.
            validation_data: JSONL file of rows to evaluate on, or several, as in train_data but without weights.
            source: Checkpoint to start from: a kaggle://, https:// or gs:// address, a path, or embedded:tiny.
            sha256: Expected sha256 of the weight file; empty: recorded, not checked.
            tokenizer: SentencePiece model, when it is not beside the weights.
            precision: Which file of a Kaggle model: by the dtype of its weights.
            image_size: Side of the model's input images, in pixels; 0: the checkpoint's own.
            images: Folder that image paths are relative to; empty: each JSONL file's folder; {date} as in train_data.
            recipe: Training recipe, as YAML text; empty: the reference recipe.
            target: Hardware that fine-tuning must fit, e.g. l4 or v5e-4; preflight compiles the training step for it.
            disk_budget: Most bytes that fine-tuning's records on gs:// may take of its disk, e.g. 1GB; empty: all are fetched.
            max_text_tokens: Maximum tokens of prefix and suffix, including bos, separator and eos.
            max_reject_fraction: Fail when a larger share of a split's rows is rejected.
            grey_range: Samples that are black and white in grey pictures, LOW,HIGH; empty: as each file states.
            images_per_example: Images in every row; rows with another number are rejected. The recipe has the same number.
            task: What the rows ask, which selects the metrics: vqa, caption, docvqa, chartqa, detect, segment, classify, ocr.
            metrics: Metrics in place of the task's, with commas, the deciding one first.
            margin: By how much the first metric must surely be better than the base's and the champion's to be published.
            mask_decoder: File with the weights that turn <seg> symbols into masks, for segment.
            batch_size: Rows decoded at once in evaluation.
            decoding: How answers are decoded, as YAML text: max_new_tokens, temperature, ...; empty: greedily, to 32 tokens.
            registry: Folder or gs:// prefix of all releases; empty: among this run's artifacts.
            formats: Formats of a release, with commas: big_vision, huggingface.
            vertex_model: Full name of a model of Vertex AI's registry that a release becomes a version of; empty: none.
            serving: How Vertex AI serves it, as YAML text: image, ports, ...; needed with vertex_model.
            artifact_root: Folder or gs:// prefix for artifacts; empty: the runner's own location.
            fresh: Make everything; false: take from earlier runs what they made from the same inputs, with the same code.
        """
        place = {
            "artifact_root": artifact_root,
            # KFP fills in a placeholder only if it is the whole value, and a run's name is not unique there.
            "run": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            "run_task": dsl.PIPELINE_TASK_NAME_PLACEHOLDER,
        }
        at_exit = summarize(expected=",".join(_ALWAYS), **place)
        with dsl.ExitHandler(at_exit, name="whatever happens"):
            made_at = {**place, "fresh": fresh}
            fetched = fetch_checkpoint(
                source=source, sha256=sha256, tokenizer=tokenizer, precision=precision, image_size=image_size, **made_at
            )
            checkpoint = _made("checkpoint", fetched, "checkpoint")
            fits = preflight(
                **checkpoint,
                recipe=recipe,
                target=target,
                max_text_tokens=max_text_tokens,
                images_per_example=images_per_example,
                **made_at,
            )
            splits = {}
            for split, data in (("train", train_data), ("validation", validation_data)):
                splits[split] = prepare_data(
                    data=data,
                    **checkpoint,
                    images=images,
                    split=split,
                    max_text_tokens=max_text_tokens,
                    max_reject_fraction=max_reject_fraction,
                    grey_range=grey_range,
                    images_per_example=images_per_example,
                    **made_at,
                )
                splits[split].set_display_name(f"prepare {split} data")
            train, validation = _made("records", splits["train"], "records"), splits["validation"]
            # The verdict of preflight holds fine-tuning back, and settings that are auto come from it.
            judged_fit = _made("preflight", fits, "preflight")
            validated = _made("validation", validation, "records")
            trained = {"recipe": recipe, "disk_budget": disk_budget}
            tuned = finetune(**checkpoint, **train, **validated, **judged_fit, **trained, **made_at)
            judged = {**checkpoint, **_made("records", validation, "records"), "task": task, "metrics": metrics}
            judged |= {"mask_decoder": mask_decoder, "batch_size": batch_size, "decoding": decoding, **made_at}
            # The base is evaluated while fine-tuning runs, so waiting for it costs nothing.
            of_base = evaluate(**judged)
            of_base.set_display_name("evaluate base")
            of_tuned = evaluate(
                **_made("tuned", tuned, "tuned"),
                **_made("baseline", of_base, "evaluation"),
                registry=registry,
                margin=margin,
                **judged,
            )
            of_tuned.set_display_name("evaluate tuned")
            # A placeholder: the comparison happens when the pipeline runs.
            with dsl.If(of_tuned.outputs["Output"] == True, name="better"):  # noqa: E712
                published = publish(
                    **checkpoint,
                    **_made("tuned", tuned, "tuned"),
                    **_made("evaluation", of_tuned, "evaluation"),
                    registry=registry,
                    formats=formats,
                    vertex_model=vertex_model,
                    serving=serving,
                    **place,
                )

        tasks = {"fetch_checkpoint": [fetched], "preflight": [fits], "prepare_data": [*splits.values()], "finetune": [tuned]}
        tasks |= {"evaluate": [of_base, of_tuned], "publish": [published], "summarize": [at_exit]}
        for step, placed in ((step, placed) for step, of_step in tasks.items() for placed in of_step):
            inputs = placed.component_spec.inputs
            artifacts = [name for name in placed.inputs if inputs[name].type.startswith("system.")]
            placed.set_caching_options(check_caching(step, artifacts, placed.inputs))
            place_task(step, placed)

    return finetune_pipeline


_ALWAYS = ("fetch-checkpoint", "preflight", "prepare-data", "prepare-data-2", "finetune", "evaluate", "evaluate-2")
"""Tasks that every successful run has."""


def _made(name: str, task: dsl.PipelineTask, output: str) -> dict:
    """An input and its hash, so that a task knows its input's contents, not only its location (see `pipelines/caching.py`)."""
    return {name: task.outputs[output], f"{name}_sha256": task.outputs["tree_sha256"]}


finetune_pipeline = make_pipeline()
