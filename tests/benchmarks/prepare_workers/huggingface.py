"""The peer: `datasets.map` with the Hugging Face processor, as its PaliGemma guides prepare rows, stored as Arrow on the disk.

huggingface.py ROWS_FOLDER PROCESSOR_FOLDER OUTPUT WORKERS
"""

import resource
import sys
import time
from pathlib import Path

import datasets
from PIL import Image
from transformers import AutoProcessor

SIZE = 224


def prepare(rows: dict, processor, folder: str) -> dict:
    """Model inputs of a batch, padded to its longest, without which the processor makes no labels."""
    images = [Image.open(Path(folder) / name).convert("RGB") for name in rows["image"]]
    texts = [f"<image>{prefix}" for prefix in rows["prefix"]]
    return dict(processor(text=texts, images=images, suffix=rows["suffix"], padding="longest", return_tensors="np"))


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Prints CPU milliseconds a row and rows a second."""
    folder, processor_folder, output, workers = sys.argv[1:]
    processor = AutoProcessor.from_pretrained(processor_folder)
    processor.image_processor.size = {"height": SIZE, "width": SIZE}
    datasets.disable_progress_bars()
    started, before = time.perf_counter(), cpu_seconds()
    rows = datasets.load_dataset("json", data_files=f"{folder}/rows.jsonl", split="train", cache_dir=output)
    prepared = rows.map(
        prepare,
        batched=True,
        batch_size=64,
        num_proc=int(workers) if int(workers) > 1 else None,
        remove_columns=rows.column_names,
        writer_batch_size=64,
        fn_kwargs={"processor": processor, "folder": folder},
    )
    if len(prepared) != len(rows):
        raise SystemExit(f"{len(prepared)} rows of {len(rows)}")
    print((cpu_seconds() - before) / len(rows) * 1e3, len(rows) / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
