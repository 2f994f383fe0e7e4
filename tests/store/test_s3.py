"""The same promises on an S3-compatible store, over HTTP.

To run against a real one: set THRESHER_TEST_S3_URL to s3://BUCKET/PREFIX and the usual AWS_… variables.
"""

import numpy as np
import pytest

import store.summary
from store import DamageError, InputError, Store
from store.location import locate, prove_exclusive_create
from store.removal import withdraw_cell
from store.verify import repair_store, verify_store
from tests.store.factory import cell_of, fill, filled_store, model_named, prompts_of
from tests.store.summaries import told_by_receipts, told_by_summary


def test_a_second_exclusive_create_is_refused(bucket_url: str) -> None:
    location = locate(f"{bucket_url}/probe")
    prove_exclusive_create(location)
    assert location.create("a/b", b"1")
    assert not location.create("a/b", b"2")
    assert location.read("a/b") == b"1"
    with pytest.raises(FileNotFoundError):
        location.read("a/c")
    assert list(location.list("a")) == ["a/b"]
    assert list(location.list("nothing")) == []
    location.delete("a/b")
    location.delete("a/b")
    assert list(location.list("")) == []


def test_same_digest_and_rows_as_on_a_local_disk(bucket_url: str, tmp_path) -> None:
    local, model = filled_store(tmp_path / "s", 300)
    remote = Store.create(f"{bucket_url}/s", prompts_of(300))
    assert fill(remote, model) == len(remote.units)
    assert remote.complete
    assert remote.digest == local.digest
    want = np.concatenate([cell_of(model, unit)[0]["resid_post.1"] for unit in remote.units])
    column = Store.open(f"{bucket_url}/s").column(model, "resid_post.1")
    assert np.array_equal(column[:].view(np.uint16), want.view(np.uint16))
    assert np.array_equal(column[[7, 3, 500]], want[[7, 3, 500]])
    assert remote.tokens(model, "resid_post.1").equals(local.tokens(model, "resid_post.1"))


def test_damage_is_found_and_repaired(bucket_url: str) -> None:
    damaged = Store.create(f"{bucket_url}/d", prompts_of(60))
    model = model_named("a")
    fill(damaged, model)
    digest = damaged.digest
    (shard,) = [path for path in damaged.location.list("cells") if "resid_post.1/c" in path]
    data = damaged.location.read(shard)
    damaged.location.write({shard: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]})
    with pytest.raises(DamageError):
        damaged.column(model, "resid_post.1")[:]
    (damage,) = verify_store(damaged)
    assert damage.path == shard
    repair_store(damaged, [damage])
    assert fill(damaged, model) == 1
    assert damaged.digest == digest


def test_the_index_says_what_receipts_say(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.summary, "FRESH_RECEIPTS", 3)
    opened = Store.create(f"{bucket_url}/i", prompts_of(1200))
    for name in ("a", "b"):
        fill(opened, model_named(name))
    fill(opened, model_named("c"), most=2)
    want = told_by_receipts(opened)
    assert told_by_summary(opened) == want
    assert [path for path in opened.location.list("index") if path.endswith(".safetensors")]
    assert told_by_summary(opened) == want
    withdraw_cell(opened, model_named("a").id, "u000001", "0001")
    assert told_by_summary(opened) == told_by_receipts(opened)
    assert told_by_summary(opened) != want
    assert verify_store(opened) == []


def test_what_is_present_is_told_in_order(bucket_url: str) -> None:
    location = locate(f"{bucket_url}/p")
    for path in ("r/a/u1.json", "r/a/u3.json", "r/b/u1.json", "s/a/u1.json"):
        location.create(path, b"1")
    asked = ["s/a/u1.json", "r/b/u2.json", "r/b/u1.json", "r/a/u3.json", "r/a/u2.json", "r/a/u1.json", "q/a/u1.json"]
    assert location.present(asked) == ["s/a/u1.json", "r/b/u1.json", "r/a/u3.json", "r/a/u1.json"]
    assert location.present([]) == []


def test_urls_that_are_no_store() -> None:
    for url in ("s3://bucket", "gs://bucket/prefix", "http://example/x"):
        with pytest.raises(InputError):
            locate(url)
