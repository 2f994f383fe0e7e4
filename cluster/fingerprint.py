"""What code a process runs: compared between driver and workers before any work is given out."""

import hashlib
import platform
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("store", "harvest", "analysis", "cluster")


@cache
def fingerprint() -> dict[str, str]:
    """Versions and the digest of our source as this process imports it."""
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "ray": version("ray"),
        "source": source_digest(),
    }


@cache
def source_digest() -> str:
    """SHA-256 over the Python files of the four packages, by relative path."""
    running = hashlib.sha256()
    for package in PACKAGES:
        folder = package_folder(package)
        for path in sorted(folder.rglob("*.py")):
            running.update(f"{package}/{path.relative_to(folder).as_posix()}\0".encode())
            running.update(path.read_bytes())
    return running.hexdigest()[:16]


def package_folder(package: str) -> Path:
    """The folder that this process imports a package from."""
    origin = import_module(package).__file__
    if origin is None:
        raise ImportError(f"{package} has no __init__.py where this process finds it: {sys.path}")
    return Path(origin).parent
