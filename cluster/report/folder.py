"""What a run folder holds, found by what it is.

Layout: any folder. Every `*.json` in it, at most two folders deep, is read and recognised by its keys, so the JSON of
any command can be put there under any name:

    thresher harvest … --json > run/harvest.json            certificate, tokens per second
    thresher info STORE --json > run/info.json              models, columns, digest
    thresher probe fit … --json > run/cities.logistic.json  one file a probe; the file's name titles it, and the same
                                                            title before `.logistic`, `.mass-mean` … shares a chart
    thresher probe transfer … --json > run/transfer.json
    thresher weights … --out run/delta                      delta.json
    thresher monitor fit … --json > run/monitor.json        threshold and the rate it was set for
    thresher monitor score … --json > run/code.score.json   one file a set of prompts, titled by the file's name; a name
                                                            that begins with `triggered` says they should be flagged
    thresher monitor audit … --json > run/audit.json
    thresher demo                                           finetune.json and behaviour.json of its own fine-tune

`report.json` and JSON that is none of these is passed over. What is missing leaves out its part of the report with a
line saying which command makes it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.errors import InputError

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One recognised JSON file; `name` is its stem."""

    name: str
    record: Record


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The recognised parts of a folder, each kind in order of file names."""

    path: Path
    infos: list[Part] = field(default_factory=list)
    harvests: list[Part] = field(default_factory=list)
    probes: list[Part] = field(default_factory=list)
    transfers: list[Part] = field(default_factory=list)
    deltas: list[Part] = field(default_factory=list)
    monitors: list[Part] = field(default_factory=list)
    scores: list[Part] = field(default_factory=list)
    audits: list[Part] = field(default_factory=list)
    finetunes: list[Part] = field(default_factory=list)
    behaviours: list[Part] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not any(getattr(self, kind) for kind in KINDS)


def _has(*keys: str) -> Callable[[Record], bool]:
    return lambda record: all(key in record for key in keys)


# Each kind by keys that no other kind has all of; the first that fits is taken.
KINDS: dict[str, Callable[[Record], bool]] = {
    "harvests": _has("store", "digest", "tokens_per_second", "quarantined"),
    "infos": _has("digest", "models", "columns", "prompts", "bytes"),
    "deltas": _has("matrices"),
    "transfers": _has("cells"),
    "behaviours": _has("behaviour"),
    "finetunes": _has("recipe", "losses"),
    "audits": lambda record: (
        isinstance(record.get("directions"), list) and all("top" in d for d in record["directions"])
    ),
    "scores": _has("flagged", "rate", "prompts"),
    "monitors": _has("monitor", "threshold", "calibration"),
    "probes": _has("site", "kind", "auroc", "recall_at_fpr"),
}
DEEPEST = 2


def read_folder(path: str | Path) -> RunFolder:
    """Reads and sorts the JSON files. Raises InputError where there is no folder, or nothing in it to report."""
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"no folder at {root}: give a folder with the JSON of thresher's commands")
    found = RunFolder(path=root)
    for file in sorted(root.rglob("*.json")):
        if len(file.relative_to(root).parts) > DEEPEST or file.is_symlink():
            continue
        record = _read(file)
        kind = next((kind for kind, fits in KINDS.items() if record is not None and fits(record)), None)
        if record is None or kind is None:
            continue
        parts = getattr(found, kind)
        # `thresher weights` both writes delta.json and prints it: the same JSON twice is one part.
        if all(part.record != record for part in parts):
            parts.append(Part(name=file.stem, record=record))
    if found.empty:
        raise InputError(
            f"{root} holds no JSON of a thresher command: put the output of 'thresher probe fit … --json' or another "
            "command there"
        )
    return found


def _read(file: Path) -> Record | None:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is not readable JSON ({error}): remove it, or run its command again") from error
    return record if isinstance(record, dict) else None
