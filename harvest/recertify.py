"""Certificates made again from what a store holds: its models by their records, its raw columns by their settings."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harvest.certificate import Certificate, certify
from harvest.raw_sink import RawSink
from harvest.settings import NumericSettings
from harvest.worker import Job
from store import Capture, ColumnSpec, ModelRef, Store
from store.digest import digest_json
from store.errors import InputError

# Compute dtype, tokens, attention backend, threads, quantization.
Settings = tuple[str, str, str, int, str]


def recertify(
    store: Store, model: ModelRef, *, n_prompts: int = 4, seed: int | None = None
) -> Iterator[tuple[str, Certificate]]:
    """The certificates of a model's published raw columns, each with the key it is to be stored under.

    One for each set of columns that were harvested in the same dtype, tokens and backend. Without a `seed` the prompts
    are those that the harvest takes. A model that is not found here, or is another one now, gives certificates that
    say so in `left_out`; nothing is fetched from the hub.
    """
    for settings, (captures, columns) in _groups(store, model).items():
        compute_dtype, tokens, attention, threads, quantization = settings
        key = digest_json([*settings, [column.key for column in columns], len(store.units), n_prompts, seed])[:16]
        try:
            job = Job(
                model=replace(found_here(model), dtype=compute_dtype),
                store_path=store.path,
                sinks=tuple(_sink(column) for column in columns),
                tokens=tokens,
                settings=NumericSettings(attention=attention, threads=threads, quantization=quantization),
                # What was refused is not in the store; what was cut is cut again.
                truncate=True,
            )
            made = certify(store, job, captures, n_prompts, seed=seed)
        except InputError as error:
            made = _left_out(str(error))
        yield key, made or _left_out("no unit has all of its columns published: rerun the harvest, it resumes")


def found_here(model: ModelRef) -> ModelRef:
    """A recorded model on this machine: the same files, or a folder of the same name with the same contents.

    Raises InputError where there is none.
    """
    try:
        model.check_unchanged()
        return model
    except (OSError, InputError):
        pass
    for name in (model.name, model.adapter):
        if name is not None and not Path(name).expanduser().exists():
            raise InputError(f"model {model.name!r} ({model.id}) is not found here: there is no {name}")
    here = replace(model, files=(), base_folder="", adapter_folder="").resolve()
    if here.digest != model.digest:
        raise InputError(f"model {model.name!r} is another one now ({here.id}) than the one harvested ({model.id})")
    return here


def _groups(store: Store, model: ModelRef) -> dict[Settings, tuple[list[Capture], list[ColumnSpec]]]:
    """Raw columns of the model by the settings they share, with the captures that hold them."""
    published = {receipt.capture for receipt in store.receipts() if receipt.model == model.id}
    groups: dict[Settings, tuple[list[Capture], list[ColumnSpec]]] = {}
    for capture in store.captures:
        if capture.id not in published:
            continue
        for column in capture.columns:
            if column.settings.get("sink") != "raw":
                continue
            numeric = column.settings["numeric"]
            settings = (
                column.settings["compute_dtype"],
                column.settings["tokens"],
                numeric["attention"],
                numeric["threads"],
                numeric.get("quantization", "none"),
            )
            captures, columns = groups.setdefault(settings, ([], []))
            columns.append(column)
            if capture not in captures:
                captures.append(capture)
    return groups


def _sink(column: ColumnSpec) -> RawSink:
    return RawSink(sites=(column.name,), dtype=column.settings["dtype"], reduce=column.settings["reduce"])


def _left_out(reason: str) -> Certificate:
    return Certificate(prompts=(), sites={}, left_out=reason)
