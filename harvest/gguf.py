"""GGUF files unpacked once: a folder of safetensors in a cache, named by the file's digest.

Reading a GGUF costs tens of seconds (its vocabulary is parsed in Python three times over), and every command and
every worker would pay it. The unpacked weights are float32, so that any compute dtype is one rounding away from
what the file says, exactly as if it were loaded directly. The folder's own digests are checked whenever it is used.
"""

import json
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from store import ModelRef
from store.digest import digest_file, digest_json

MANIFEST = "thresher.json"
VERSION = 1


def cache_folder() -> Path:
    """`$THRESHER_CACHE`, or `thresher` in the user's cache folder."""
    if named := os.environ.get("THRESHER_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thresher"


def unpacked(ref: ModelRef) -> Path:
    """The folder of safetensors, config and tokenizer that a resolved GGUF reference stands for.

    Made where it is not there yet, or is damaged. Raises OSError where the cache cannot be written, and what
    transformers raises for a file it cannot read.
    """
    content = next(file.sha256 for file in ref.files if file.role == "weights")
    key = digest_json([content, transformers.__version__, VERSION])
    folder = cache_folder() / "gguf" / key
    if _sound(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=folder.parent))
    try:
        _unpack(ref, partial)
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _unpack(ref: ModelRef, folder: Path) -> None:
    # The dequantising bar cannot be switched off otherwise.
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        model = AutoModelForCausalLM.from_pretrained(
            ref.folder,
            gguf_file=ref.gguf_file,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(ref.folder, gguf_file=ref.gguf_file, local_files_only=True).save_pretrained(
            folder
        )
    digests = {path.name: digest_file(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1))


def _publish(partial: Path, folder: Path) -> None:
    """Renames into place; another process that was first, or a damaged folder, is dealt with."""
    if folder.exists():
        if _sound(folder):
            return
        shutil.rmtree(folder)
    try:
        partial.rename(folder)
    except OSError:
        if not _sound(folder):
            raise


def _sound(folder: Path) -> bool:
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        return bool(digests) and all(digest_file(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False
