"""A store in an S3-compatible object store with conditional create (`If-None-Match: *`).

Credentials, region and endpoint come from the usual places (AWS_ACCESS_KEY_ID and the like, AWS_REGION,
AWS_ENDPOINT_URL, instance roles); none of them is ever written anywhere. Writing and records go through obstore,
arrays are read by tensorstore's own S3 driver.
"""

import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from store.errors import IncompleteError, InputError

CONCURRENT_PUTS = 8
# Seconds before a create that met a conflict is tried again.
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


@dataclass(frozen=True)
class S3Location:
    """`s3://bucket/prefix`. Objects appear whole and durable when a put returns: there is nothing to sync."""

    bucket: str
    prefix: str

    @staticmethod
    def from_url(url: str) -> "S3Location":
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket or not prefix.strip("/"):
            raise InputError(f"{url!r} names no folder of a bucket: give s3://BUCKET/PREFIX")
        return S3Location(bucket, prefix.strip("/"))

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def write(self, files: dict[str, bytes]) -> None:
        with ThreadPoolExecutor(CONCURRENT_PUTS) as threads:
            for _ in threads.map(lambda item: self._put(*item), files.items()):
                pass

    def create(self, path: str, data: bytes) -> bool:
        for pause in PAUSES:
            try:
                self._put(path, data, mode="create")
            except AlreadyExistsError:
                # A conflict with another request looks the same (409), and then nothing may be there.
                if self._is_there(path):
                    return False
                time.sleep(pause * (1 + random.random()))
            else:
                return True
        raise IncompleteError(
            f"{self.url}/{path} is neither there nor can it be created: the object store answers with a conflict each "
            "time; run the same command again"
        )

    def read(self, path: str) -> bytes:
        try:
            return bytes(obstore.get(self._objects, path).bytes())
        except FileNotFoundError:
            raise
        except BaseError as error:
            raise self._explained(error) from error

    def list(self, prefix: str) -> Iterator[str]:
        try:
            for page in obstore.list(self._objects, f"{prefix}/" if prefix else None):
                yield from sorted(entry["path"] for entry in page)
        except BaseError as error:
            raise self._explained(error) from error

    def present(self, paths: Sequence[str]) -> Sequence[str]:
        """By listing from the first to the last, folder by folder of the second level: a thousand keys a request."""
        found: set[str] = set()
        for folder, group in groupby(sorted(paths), key=lambda path: "/".join(path.split("/")[:-1][:2])):
            asked = list(group)
            try:
                # What sorts just before the first one: listing begins behind it.
                for page in obstore.list(self._objects, f"{folder}/" if folder else None, offset=asked[0][:-1]):
                    found.update(entry["path"] for entry in page)
                    if page and page[-1]["path"] > asked[-1]:
                        break
            except BaseError as error:
                raise self._explained(error) from error
        return [path for path in paths if path in found]

    def _is_there(self, path: str) -> bool:
        try:
            self.modified(path)
        except FileNotFoundError:
            return False
        return True

    def modified(self, path: str) -> float:
        try:
            return obstore.head(self._objects, path)["last_modified"].timestamp()
        except FileNotFoundError:
            raise
        except BaseError as error:
            raise self._explained(error) from error

    def delete(self, path: str) -> None:
        try:
            obstore.delete(self._objects, path)
        except FileNotFoundError:
            return
        except BaseError as error:
            raise self._explained(error) from error

    def kvstore(self, path: str) -> dict[str, Any]:
        spec: dict[str, Any] = {"driver": "s3", "bucket": self.bucket, "path": f"{self.prefix}/{path}/"}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            spec["endpoint"] = endpoint
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            spec["aws_region"] = region
        return spec

    @cached_property
    def _objects(self) -> S3Store:
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        return S3Store(self.bucket, prefix=self.prefix, client_options={"allow_http": plain})

    def _put(self, path: str, data: bytes, mode: Any = "overwrite") -> None:
        try:
            obstore.put(self._objects, path, data, mode=mode, use_multipart=False)
        except AlreadyExistsError:
            raise
        except BaseError as error:
            raise self._explained(error) from error

    def _explained(self, error: BaseError) -> IncompleteError | InputError:
        reason = str(error).strip().splitlines()[0][:300]
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            return InputError(f"{self.url} refused us ({reason}): check the AWS_… credentials and the bucket's policy")
        return IncompleteError(
            f"{self.url} does not answer as it should ({reason}): check AWS_ENDPOINT_URL, AWS_REGION and the network, "
            "and run the same command again; what was published is kept"
        )
