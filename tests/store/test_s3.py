"""The same promises on an S3-compatible store, over HTTP.

To run against a real one: set THRESHER_TEST_S3_URL to s3://BUCKET/PREFIX and the usual AWS_… variables.
"""

import numpy as np
import pytest

from store import DamageError, InputError, Store
from store.location import locate, prove_exclusive_create
from store.verify import repair_store, verify_store
from tests.store.factory import cell_of, fill, filled_store, model_named, prompts_of


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
    store = Store.create(f"{bucket_url}/d", prompts_of(60))
    model = model_named("a")
    fill(store, model)
    digest = store.digest
    (shard,) = [path for path in store.location.list("cells") if "resid_post.1/c" in path]
    data = store.location.read(shard)
    store.location.write({shard: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]})
    with pytest.raises(DamageError):
        store.column(model, "resid_post.1")[:]
    (damage,) = verify_store(store)
    assert damage.path == shard
    repair_store(store, [damage])
    assert fill(store, model) == 1
    assert store.digest == digest


def test_urls_that_are_no_store() -> None:
    for url in ("s3://bucket", "gs://bucket/prefix", "http://example/x"):
        with pytest.raises(InputError):
            locate(url)
