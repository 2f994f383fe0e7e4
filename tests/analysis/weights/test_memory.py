"""Peak memory does not grow with the model: three times its largest matrix in float32, and a constant."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

MATRICES, SIDE = 12, 3072  # a matrix is more than the 32 MB up to which glibc keeps freed blocks
LARGEST = 4 * SIDE * SIDE
CONSTANT = 96 << 20  # rows in flight, triples that are kept, and what glibc holds on to

PROGRAM = """
import json, re, sys
from pathlib import Path
from analysis.weights import weight_delta

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

weight_delta(sys.argv[1], sys.argv[2], rank=10)  # everything is imported, threads and pools exist
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
before = peak()
delta = weight_delta(sys.argv[3], sys.argv[4], rank=10)
significant = [matrix.significant for matrix in delta.matrices]
print(json.dumps({"grown": peak() - before, "significant": significant}))
"""


def write_pair(folder: Path, matrices: int, side: int) -> tuple[str, str]:
    """Two checkpoints of bfloat16 matrices that differ by rank 2, sharded, a matrix a file."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "tuned"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    weight_map = {}
    for layer in range(matrices):
        weight = f"model.layers.{layer}.mlp.down_proj.weight"
        weight_map[weight] = f"{layer}.safetensors"
        base = (torch.randn(side, side, generator=generator) * 0.02).bfloat16()
        change = torch.randn(side, 2, generator=generator) @ torch.randn(2, side, generator=generator) * 1e-3
        save_file({weight: base}, folder / "base" / weight_map[weight])
        save_file({weight: (base.float() + change).bfloat16()}, folder / "tuned" / weight_map[weight])
    for name in ("base", "tuned"):
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return str(folder / "base"), str(folder / "tuned")


def test_peak_memory_is_bounded_by_the_largest_matrix(tmp_path: Path) -> None:
    small = write_pair(tmp_path / "small", 1, 128)
    large = write_pair(tmp_path / "large", MATRICES, SIDE)
    files = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*.safetensors"))
    assert files > 3 * LARGEST + CONSTANT + LARGEST  # reading everything at once would be caught
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *small, *large], capture_output=True, text=True, check=True, timeout=500
    )
    found = json.loads(ran.stdout)
    assert found["significant"] == [2] * MATRICES
    assert found["grown"] <= 3 * LARGEST + CONSTANT
