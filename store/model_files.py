"""The files a model is made of, found and checked before anything is loaded from them.

Only safetensors and GGUF weights are accepted. A folder may not point outside itself, and its configuration may
not ask for code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from store.digest import digest_file
from store.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
HUB_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", *TOKENIZER_FILES)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
_FORBIDDEN_KEYS = ("auto_map", "trust_remote_code")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file of a model. `role` is weights, config, tokenizer or adapter; `path` is relative to its folder.

    `size` in bytes, `mtime_ns` as the file system tells it: what was loaded is what was hashed as long as both
    are still the same after loading.
    """

    role: str
    path: str
    size: int
    mtime_ns: int
    sha256: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


def model_files(folder: Path, gguf_file: str | None) -> list[ModelFile]:
    """Hashes the files of a model folder, or of a GGUF file in it. Raises InputError for what may not be loaded."""
    if (folder / "adapter_config.json").is_file():
        # transformers would load the adapter's own base in place of this folder's weights.
        raise InputError(
            f"{folder} holds an adapter_config.json beside the model: give the base's own folder, and the adapter's "
            "with --adapter"
        )
    if gguf_file is not None:
        return [_hashed("weights", folder, gguf_file)]
    config = _config(folder, "config.json", f"{folder} is no model folder: it has no config.json")
    _refuse_code(config, folder / "config.json")
    weights = _weight_shards(folder, "model.safetensors")
    found = [_hashed("weights", folder, name) for name in weights]
    found.append(_hashed("config", folder, "config.json"))
    return found + _tokenizer_files(folder)


def adapter_files(folder: Path) -> list[ModelFile]:
    """Hashes a peft adapter's folder. Raises InputError where it is none or holds pickled weights."""
    missing = f"{folder} is no adapter folder: it has no adapter_config.json (peft's save_pretrained writes one)"
    config = _config(folder, "adapter_config.json", missing)
    _refuse_code(config, folder / "adapter_config.json")
    weights = _weight_shards(folder, "adapter_model.safetensors")
    return [_hashed("adapter", folder, name) for name in [*weights, "adapter_config.json"]]


def check_unchanged(folder: Path, files: tuple[ModelFile, ...]) -> None:
    """Raises InputError if a file of `folder` changed since it was hashed (size or modification time)."""
    for file in files:
        state = (folder / file.path).stat()
        if (state.st_size, state.st_mtime_ns) != (file.size, file.mtime_ns):
            raise InputError(f"{folder / file.path} changed after it was hashed: wait for its writer and run again")


def _weight_shards(folder: Path, single: str) -> list[str]:
    index = folder / f"{single}.index.json"
    if index.is_file() and (folder / single).is_file():
        raise InputError(
            f"{folder} has both {single} and {index.name}: which of them holds the weights is a guess; move one away"
        )
    if index.is_file():
        shards = sorted(set(_config(folder, index.name, "").get("weight_map", {}).values()))
        for shard in shards:
            _refuse_escape(folder, shard, index)
            if not (folder / shard).is_file():
                raise InputError(f"{index} names {shard}, which is not there: copy the missing shard beside it")
        if shards:
            return shards
    if (folder / single).is_file():
        _refuse_escape(folder, single, folder)
        return [single]
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        raise InputError(
            f"{folder} holds its weights as {pickled[0]}, a pickle that can run code when it is opened: convert it "
            "in a sandbox to safetensors (model.save_pretrained writes them) and point to the result"
        )
    raise InputError(f"{folder} has no {single} and no {index.name}: nothing to load")


def _refuse_escape(folder: Path, name: str, where: Path) -> None:
    outside = not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts
    if not outside and (folder / name).is_symlink():
        # The hub's cache links every file of a snapshot to ../../blobs: that one layout is what a link may be.
        target = (folder / name).resolve()
        cache = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
        outside = not target.is_relative_to(cache.resolve())
    if outside:
        raise InputError(f"{where} names {name!r}, which leads out of its folder: refused")


def _refuse_code(config: Mapping[str, Any], where: Path) -> None:
    for key, value in config.items():
        if key in _FORBIDDEN_KEYS or key.endswith("_internal"):
            raise InputError(
                f"{where} asks for code of its own ({key!r}): remote code is never run here; use a model that "
                "transformers knows, or remove the key if the architecture is a built-in one"
            )
        if isinstance(value, dict):
            _refuse_code(value, where)


def _config(folder: Path, name: str, missing: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise InputError(missing)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} should hold a JSON object")
    return config


def _tokenizer_files(folder: Path) -> list[ModelFile]:
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        _refuse_code(_config(folder, settings.name, ""), settings)
    templates = sorted(path.relative_to(folder).as_posix() for path in folder.glob("additional_chat_templates/*.jinja"))
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()] + templates
    for name in names:
        _refuse_escape(folder, name, folder)
    return [_hashed("tokenizer", folder, name) for name in names]


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}): copy it again") from error


def _hashed(role: str, folder: Path, name: str) -> ModelFile:
    path = folder / name
    if path.suffix == ".safetensors":
        _check_header(path)
    before = path.stat()
    digest = digest_file(path)
    return ModelFile(role=role, path=name, size=before.st_size, mtime_ns=before.st_mtime_ns, sha256=digest)
