"""`thresher doctor`: whether this machine can do the work, and what stands in the way."""

import os
import shutil
import sys
from importlib.machinery import PathFinder
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from cluster.console import JsonFlag, emit, out
from cluster.fingerprint import PACKAGES, fingerprint, package_folder

DISTRIBUTIONS = ("torch", "transformers", "ray", "zarr", "tensorstore", "pyarrow", "numpy", "peft", "safetensors")


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: JsonFlag = False) -> None:
    """Versions, devices, shadowed modules, disk, cluster, auth; exits 1 where something is wrong."""
    data = examine()
    emit(as_json, data, lambda: _print(data))
    if not data["ok"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Everything that `thresher doctor` tells."""
    shadowed = shadowed_modules(sys.path, Path.cwd())
    return {
        "ok": not shadowed,
        "versions": {name: version(name) for name in ("thresher", *DISTRIBUTIONS)},
        "python": fingerprint()["python"],
        "source": fingerprint()["source"],
        "devices": _devices(),
        "shadowed": shadowed,
        "disk": {"path": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free},
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
        "cluster": {
            "address": os.environ.get("RAY_ADDRESS"),
            "auth_mode": os.environ.get("RAY_AUTH_MODE"),
            "token": bool(os.environ.get("RAY_AUTH_TOKEN")) or _token_path().is_file(),
        },
    }


def shadowed_modules(search: list[str], folder: Path) -> list[dict[str, str]]:
    """Modules that hide ours, or would in a worker started in `folder`."""
    found = []
    for package in PACKAGES:
        ours = package_folder(package).resolve()
        for entry in dict.fromkeys([*search, str(folder)]):
            spec = PathFinder.find_spec(package, [entry or "."])
            places = (
                [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or []) if spec else []
            )
            for place in places:
                path = Path(place).resolve()
                if (path.parent if path.name == "__init__.py" else path) != ours:
                    found.append({"package": package, "ours": str(ours), "other": str(path)})
    return [entry for number, entry in enumerate(found) if entry not in found[:number]]


def _devices() -> dict[str, Any]:
    import torch

    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
    }


def _token_path() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


def _print(data: dict[str, Any]) -> None:
    table = Table(show_header=False)
    table.add_row("python", data["python"])
    for name, number in data["versions"].items():
        table.add_row(name, number)
    devices = data["devices"]
    table.add_row("processors", f"{devices['cpus']}, {devices['memory_bytes'] / 2**30:.1f} GiB of memory")
    table.add_row("CUDA devices", ", ".join(devices["cuda"]) or "none: models run on the processor")
    table.add_row("free disk", f"{data['disk']['free_bytes'] / 2**30:.1f} GiB at {data['disk']['path']}")
    table.add_row("Ray token", "found" if data["cluster"]["token"] else "none: needed for clusters beyond this machine")
    out.print(table)
    for entry in data["shadowed"]:
        out.print(
            f"[red]shadowed[/] package {entry['package']!r}: {entry['other']} hides {entry['ours']}; run from another "
            "folder or rename it"
        )
    if not data["shadowed"]:
        out.print("no module shadows thresher's packages")
