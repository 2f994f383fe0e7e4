"""The same promises on an S3-compatible store, over HTTP.

To run against a real one: set THRESHER_TEST_S3_URL to s3://BUCKET/PREFIX and the usual AWS_… variables.
"""

import os
import secrets
from collections.abc import Iterator

import numpy as np
import pytest

from store import DamageError, InputError, Store
from store.location import locate, prove_exclusive_create
from store.verify import repair_store, verify_store
from tests.store.factory import cell_of, fill, filled_store, model_named, prompts_of


@pytest.fixture(scope="module")
def bucket_url() -> Iterator[str]:
    """A prefix of its own in a bucket: of a moto server on loopback, or of the store the environment names."""
    if url := os.environ.get("THRESHER_TEST_S3_URL"):
        yield f"{url.rstrip('/')}/{secrets.token_hex(4)}"
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"]).create_bucket(Bucket="thresher")
        yield "s3://thresher/tests"
    server.stop()


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
