"""A model named by path or hub id, and the digests that pin it."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

from store.capture_spec import DTYPES
from store.digest import digest_json
from store.errors import InputError
from store.model_files import HUB_PATTERNS, ModelFile, adapter_files, check_unchanged, model_files
from store.names import slug


@dataclass(frozen=True)
class ModelRef:
    """A language model, perhaps with an adapter.

    name      a folder of safetensors, a `.gguf` file, or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`
    revision  hub revision; only for hub ids
    adapter   folder of a peft adapter, or its hub id
    dtype     compute dtype: bfloat16, float16 or float32
    files, base_folder, adapter_folder   set by `resolve()`

    Two references with equal `digest` are the same model, wherever their files lie; dtype is not part of it.
    """

    name: str
    _: KW_ONLY
    revision: str | None = None
    adapter: str | None = None
    dtype: str = "bfloat16"
    files: tuple[ModelFile, ...] = ()
    base_folder: str = ""
    adapter_folder: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}: use one of {', '.join(DTYPES)}")

    def resolve(self) -> "ModelRef":
        """Finds and hashes the files.

        Raises InputError where the model is missing or may not be loaded, and for a revision of what is no hub id.
        """
        if self.files:
            return self
        folder, gguf = _locate(self.name, self.revision, what="model")
        files = model_files(folder, gguf)
        adapter_folder = ""
        if self.adapter is not None:
            located, _ = _locate(self.adapter, None, what="adapter")
            files += adapter_files(located)
            adapter_folder = str(located)
        return replace(self, files=tuple(files), base_folder=str(folder), adapter_folder=adapter_folder)

    @property
    def digest(self) -> str:
        """SHA-256 over roles and contents: the same model on another machine has the same digest."""
        if not self.files:
            raise InputError(f"model {self.name!r} is not resolved yet: call .resolve() first")
        # A GGUF or single-shard file may be named anything; contents and roles say what the model is.
        return digest_json(sorted([file.role, file.sha256] for file in self.files))

    @property
    def id(self) -> str:
        """Readable and unique: what names this model's folder in a store."""
        stem = Path(self.name).stem if self.name.endswith(".gguf") else Path(self.name).name
        label = (
            slug(stem)
            if self.adapter is None
            else f"{slug(stem, longest=24)}-{slug(Path(self.adapter).name, longest=23)}"
        )
        return f"{label}-{self.digest[:12]}"

    @property
    def folder(self) -> str:
        """Where `from_pretrained` looks."""
        return self.base_folder

    @property
    def gguf_file(self) -> str | None:
        """`from_pretrained`'s `gguf_file`, where the weights are GGUF."""
        weights = [file.path for file in self.files if file.role == "weights"]
        return weights[0] if len(weights) == 1 and weights[0].endswith(".gguf") else None

    def check_unchanged(self) -> None:
        """Raises InputError if a file changed since it was hashed. Call it after loading."""
        check_unchanged(Path(self.base_folder), tuple(file for file in self.files if file.role != "adapter"))
        if self.adapter_folder:
            check_unchanged(Path(self.adapter_folder), tuple(file for file in self.files if file.role == "adapter"))

    def record(self) -> dict[str, Any]:
        """JSON from which `from_record` makes the same reference again."""
        return {
            "name": self.name,
            "revision": self.revision,
            "adapter": self.adapter,
            "dtype": self.dtype,
            "base_folder": self.base_folder,
            "adapter_folder": self.adapter_folder,
            "digest": self.digest,
            "files": [file.record() for file in self.files],
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "ModelRef":
        fields = {key: value for key, value in record.items() if key not in ("name", "digest", "files")}
        return ModelRef(record["name"], **fields, files=tuple(ModelFile(**file) for file in record["files"]))


def _locate(name: str, revision: str | None, *, what: str) -> tuple[Path, str | None]:
    """The folder of a model and, for GGUF, the file in it. Hub ids go through the hub's own cache."""
    path = Path(name).expanduser()
    if revision is not None and path.exists():
        raise InputError(
            f"{what} {name!r} is on this disk, and only models of the hub have revisions: leave revision "
            f"{revision!r} out, or give the folder that holds it"
        )
    if path.is_file() and path.suffix == ".gguf" and what == "model":
        return path.parent.absolute(), path.name
    if path.is_dir():
        return path.absolute(), None
    if path.is_file():
        raise InputError(f"{what} {name!r} is a file: give its folder, or a .gguf file")
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1:
        raise InputError(f"{what} {name!r} does not exist: give a folder, a .gguf file or a hub id")
    # Imported here: every command would pay a tenth of a second for a hub it does not ask.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_PATTERNS))), None
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{what} {name!r} is neither a local path nor to be had from the hub ({reason}): check the spelling, "
            "or download it first and give its folder"
        ) from error
