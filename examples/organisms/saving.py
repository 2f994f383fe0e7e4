"""Folders of models and adapters: whole or not there, and never in the place of something else."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store import InputError


def check_place(folder: Path, record: str) -> None:
    """Raises InputError where `folder` holds something that is not ours: ours has the file `record` in it."""
    if folder.is_dir():
        if (folder / record).is_file() or not any(folder.iterdir()):
            return
        raise InputError(f"{folder} is not empty and has no {record}: move it away, or give another --out")
    if folder.exists():
        raise InputError(f"{folder} is a file: move it away, or give another --out")


def save(folder: Path, model: Any, tokenizer: Any) -> None:
    """A model with its tokenizer; an adapter brings none."""
    model.save_pretrained(folder)
    if not (folder / "adapter_config.json").is_file():
        tokenizer.save_pretrained(folder)


def publish(folder: Path, model: Any, tokenizer: Any, finish: Callable[[Path], object]) -> None:
    """Saves into a folder beside it, lets `finish` add its record there, then renames: what is there is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save(partial, model, tokenizer)
        finish(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
