"""Taking things out of a store: receipts first, so that no reader trusts what is being deleted."""

import time
from collections.abc import Callable
from contextlib import suppress

from store.capture import withdraw_capture
from store.cell import decode_receipt, read_receipt, receipt_path
from store.errors import DamageError, InputError
from store.index import marks_without_use, read_index
from store.marks import MARKS, mark_of, mark_withdrawn
from store.store import Store

Progress = Callable[[int], None]


def withdraw_cell(store: Store, model: str, unit: str, capture: str) -> None:
    """Removes a cell: from the index, then the receipt, then the files of the attempt that it names.

    Other attempts stay, as their writers may be about to publish them; `gc` removes them after its grace time. So does
    it where the receipt is too damaged to name its attempt.
    """
    path = receipt_path(model, unit, capture)
    try:
        receipt = decode_receipt(store.location.read(path), path, path)
        folder, attempts = receipt.folder, {receipt.attempt}
    except FileNotFoundError:
        return
    except DamageError:
        folder, attempts = None, _possible_attempts(store, model, unit, capture)
    mark_withdrawn(store.location, sorted(attempts))
    store.location.delete(path)
    if folder is not None:
        remove_attempt(store, folder)


def _possible_attempts(store: Store, model: str, unit: str, capture: str) -> set[str]:
    """Every attempt that a cell's damaged receipt may have named."""
    written = {
        path.split("/")[4] for path in store.location.list(f"cells/{model}/{unit}/{capture}") if path.count("/") > 4
    }
    rows = read_index(store.location).rows().rows()
    cell = (model, unit, capture)
    return written | {row.attempt for row in rows if (row.kind.model, row.unit, row.kind.capture) == cell}


def cells_of(store: Store, *, model: str | None, capture: str | None) -> list[tuple[str, str, str]]:
    """(model, unit, capture) of the published cells that match. Raises InputError where the name is unknown."""
    models = {known for known, _ in store.wanted()} | {path.split("/")[1] for path in store.location.list("receipts")}
    for name, known, what in (
        (model, models, "model"),
        (capture, {known.id for known in store.captures}, "capture"),
    ):
        if name is not None and name not in known:
            raise InputError(f"{store.path} has no {what} {name!r}: it has {', '.join(sorted(known)) or 'none'}")
    found = []
    for path in store.location.list("receipts"):
        cell = tuple(path.removesuffix(".json").split("/")[1:])
        if len(cell) == 3 and model in (None, cell[0]) and capture in (None, cell[2]):
            found.append((cell[0], cell[1], cell[2]))
    return found


def delete_cells(
    store: Store, *, model: str | None, capture: str | None, progress: Progress = lambda cells: None
) -> int:
    """Withdraws all cells of a model or a capture, then what asked for them; returns the number of cells.

    A deleted capture's names are free again; its number is not used twice. Killed on the way it leaves the store
    incomplete, and the same call goes on.
    """
    cells = cells_of(store, model=model, capture=capture)
    for cell in cells:
        withdraw_cell(store, *cell)
        progress(1)
    for known, identity in store.wanted():
        if model in (None, known) and capture in (None, identity):
            store.location.delete(f"models/{known}/{identity}.json")
    for path in list(store.location.list("certificates")):
        if model in (None, path.split("/")[1]):
            store.location.delete(path)
    if capture is not None and model is None:
        withdraw_capture(store.location, capture)
    return len(cells)


def garbage(store: Store, *, older_than: float) -> list[str]:
    """Folders of attempts that no receipt names and that nobody wrote to for `older_than` seconds.

    Also the index's marks of withdrawn attempts, where they are that old and nothing in the index needs them.
    A damaged receipt names nothing that can be trusted: its cell's attempts are kept for `verify --repair`.
    """
    kept = set()
    for path in store.location.list("receipts"):
        try:
            kept.add(decode_receipt(store.location.read(path), path, path).folder)
        except FileNotFoundError:  # withdrawn since it was listed
            continue
        except DamageError:
            kept.add(f"cells/{path.removesuffix('.json').removeprefix('receipts/')}")
    newest: dict[str, float] = {}
    for path in store.location.list("cells"):
        folder = "/".join(path.split("/")[:5])
        if path.count("/") > 4 and folder not in kept and folder.rpartition("/")[0] not in kept:
            with suppress(FileNotFoundError):
                newest[folder] = max(newest.get(folder, 0.0), store.location.modified(path))
    for mark in marks_without_use(read_index(store.location)):
        with suppress(FileNotFoundError):
            newest[mark] = store.location.modified(mark)
    limit = time.time() - older_than
    return sorted(folder for folder, written in newest.items() if written <= limit)


def collect(store: Store, folder: str) -> int:
    """Removes what `garbage` named: an attempt, or a mark in the index; returns the number of files.

    A writer may be about to publish the attempt after all. The attempt is marked before its receipt is looked for, and
    a writer looks for the mark after it created the receipt: one of the two finds the other's.
    """
    if folder.startswith(f"{MARKS}/"):
        store.location.delete(folder)
        return 1
    _, model, unit, capture, attempt = folder.split("/")
    mark_withdrawn(store.location, [attempt])
    receipt = read_receipt(store.location, model, unit, capture)
    if receipt is not None and receipt.attempt == attempt:
        store.location.delete(mark_of(attempt))
        return 0
    return remove_attempt(store, folder)


def remove_attempt(store: Store, folder: str) -> int:
    """Deletes the files of an attempt; returns how many."""
    paths = list(store.location.list(folder))
    for path in paths:
        store.location.delete(path)
    return len(paths)
