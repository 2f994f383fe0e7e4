"""What a store's summary says, and what it should say."""

from typing import Any

from store import Store
from store.cell import decode_receipt
from store.digest import digest_json, digest_sequence


def told_by_receipts(opened: Store) -> dict[str, Any]:
    """What a summary should say, from the receipts that lie there and from nothing else; docs/store.md, Digests."""
    models = {model.id: model.digest for model in opened.models}
    receipts = []
    for path in opened.location.list("receipts"):
        receipt = decode_receipt(opened.location.read(path), path, path)
        if (receipt.model, receipt.capture) in opened.wanted():
            receipts.append(receipt)
    lines: set[str] = set()
    shapes: dict[tuple[str, str], list[int]] = {}
    for receipt in receipts:
        cell = [models[receipt.model], receipt.unit_digest]
        lines.add(digest_json([*cell, "tokens", receipt.tokens_digest]))
        for name, column in receipt.columns.items():
            lines.add(digest_json([*cell, column.key, column.digest]))
            shape = shapes.setdefault((receipt.model, name), [0, *column.shape[1:]])
            shape[0] += column.shape[0]
    return {
        "digest": digest_sequence([digest_sequence(unit.digest for unit in opened.units), *sorted(lines)]),
        "complete": len(receipts) == len(opened.wanted()) * len(opened.units),
        "tokens": sum({(receipt.model, receipt.unit): receipt.tokens for receipt in receipts}.values()),
        "bytes": sum(size for receipt in receipts for size, _ in receipt.files.values()),
        "shapes": {key: tuple(shape) for key, shape in shapes.items()},
    }


def told_by_summary(opened: Store) -> dict[str, Any]:
    summary = opened.summary()
    return {
        "digest": summary.digest,
        "complete": summary.complete,
        "tokens": summary.tokens,
        "bytes": summary.bytes,
        "shapes": {(column.model, column.name): column.shape for column in summary.columns},
    }
