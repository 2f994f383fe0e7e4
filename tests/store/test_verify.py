"""Nothing silently wrong: every kind of damage is found, named, and repaired by computing exactly that cell again."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from store import DamageError, InputError, Store
from store.verify import repair_store, verify_store
from tests.store.factory import fill, filled_store

FLIPS = 2000


def files_of(store: Store) -> list[Path]:
    return sorted(path for path in Path(store.path).rglob("*") if path.is_file())


def found_by_verify(path: Path) -> list[str]:
    """What is damaged in a store, whether verify lists it or the store cannot even be opened."""
    try:
        return [damage.path for damage in verify_store(Store.open(path))]
    except (DamageError, InputError) as error:
        return [str(error)]


def test_a_sound_store_has_no_damage(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path / "s")
    assert verify_store(store, deep=True) == []


def test_every_flipped_bit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.summary.FRESH_RECEIPTS", 1)
    store, model = filled_store(tmp_path / "s", 60)
    store.write_certificate(model, "0001", {"format": 1, "ok": True})
    store.summary()
    kinds: dict[str, list[Path]] = {}
    for path in files_of(store):
        relative = path.relative_to(store.path)
        kinds.setdefault(f"{relative.parts[0]}/{path.name}", []).append(path)
    assert {kind.split("/")[0] for kind in kinds} == {
        "zarr.json", "prompts", "captures", "models", "certificates", "cells", "receipts", "index"
    }  # fmt: skip
    chance = random.Random(0)
    missed = []
    for number in range(FLIPS):
        path = chance.choice(kinds[sorted(kinds)[number % len(kinds)]])
        sound = path.read_bytes()
        place, bit = chance.randrange(len(sound)), chance.randrange(8)
        path.write_bytes(sound[:place] + bytes([sound[place] ^ (1 << bit)]) + sound[place + 1 :])
        try:
            if not found_by_verify(Path(store.path)):
                missed.append((path, place, bit))
        except Exception as error:  # noticed, but not in one line
            missed.append((path, place, bit, repr(error)))
        path.write_bytes(sound)
    assert missed == []
    assert found_by_verify(Path(store.path)) == []


@pytest.mark.parametrize("harm", ["truncate", "remove", "swap", "zero"])
def test_harm_to_a_shard_is_found_and_repaired(tmp_path: Path, harm: str) -> None:
    store, model = filled_store(tmp_path / "s")
    digest = store.digest
    shards = [path for path in files_of(store) if path.parts[-4] == "resid_post.1" or "resid_post.1/c" in str(path)]
    victim, other = shards[1], shards[2]
    if harm == "truncate":
        victim.write_bytes(victim.read_bytes()[:-9])
    elif harm == "remove":
        victim.unlink()
    elif harm == "swap":
        shutil.copy(other, victim)
    else:
        victim.write_bytes(bytes(victim.stat().st_size))
    damages = verify_store(Store.open(store.path))
    assert [Path(store.path) / damage.path for damage in damages] == [victim]
    assert damages[0].cell is not None
    assert damages[0].cell[1] == "u000001"
    withdrawn = repair_store(store, damages)
    assert withdrawn == [damages[0].cell]
    assert verify_store(store) == []
    assert not store.complete
    assert fill(store, model) == 1
    assert store.digest == digest


def test_reading_a_damaged_chunk_raises(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s", 60)
    (shard,) = [path for path in files_of(store) if "resid_post.1/c" in str(path)]
    sound = shard.read_bytes()
    for place in (0, len(sound) // 2, len(sound) - 3):
        shard.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
        with pytest.raises(DamageError, match="resid_post.1"):
            store.column(model, "resid_post.1")[:]
    shard.unlink()
    with pytest.raises(DamageError):
        store.column(model, "resid_post.1")[:]
    shard.write_bytes(sound)
    assert np.isfinite(store.column(model, "resid_post.1")[:].astype(np.float32)).all()


def test_a_foreign_codec_is_refused(tmp_path: Path) -> None:
    store, model = filled_store(tmp_path / "s", 60)
    (metadata,) = [path for path in files_of(store) if str(path).endswith("resid_post.1/zarr.json")]
    metadata.write_text(metadata.read_text().replace('"zstd"', '"gzip"'))
    with pytest.raises(DamageError):
        store.column(model, "resid_post.1")[:]


def test_a_receipt_in_anothers_place_is_found(tmp_path: Path) -> None:
    store, _ = filled_store(tmp_path / "s")
    receipts = [path for path in files_of(store) if "/receipts/" in str(path)]
    shutil.copy(receipts[0], receipts[1])
    (damage,) = verify_store(Store.open(store.path))
    assert "another cell" in damage.reason
