"""A plan's numbers are those of the harvest that follows it, and planning leaves no trace."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from harvest import Int8Sink, LogProbSink, NumericSettings, harvest
from harvest.plan import ColumnPlan, HarvestPlan, job_of, missing_cells, plan_harvest
from store import CaptureSpec, InputError, ModelRef, PromptSet, Store
from store.cell import read_tokens
from tests.store.traces import nbytes, trace

SETTINGS = NumericSettings(threads=1)
COUNT = 60
SPEC = CaptureSpec(sites="resid_post.1,heads.2,resid_pre.1", tokens="every:2")


def prompts_of(count: int) -> PromptSet:
    return PromptSet.from_rows(
        [{"text": f"Paris is number {row} of {'very ' * (row % 5)}many"} for row in range(count)]
    )


@pytest.fixture(scope="module")
def models(save_tiny: Callable[[str], str]) -> dict[str, ModelRef]:
    return {name: ModelRef(save_tiny(name), dtype="bfloat16").resolve() for name in ("llama", "gpt2", "mixtral")}


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.unit.PROMPTS_PER_UNIT", 50)


def planned(model: ModelRef, store: Store, spec: CaptureSpec | None, **asked: Any) -> HarvestPlan:
    return plan_harvest(store, job_of(model, store, spec, **asked))


def checked(model: ModelRef, store: Store, spec: CaptureSpec | None, **asked: Any) -> Any:
    return missing_cells(store, job_of(model, store, spec, **asked))


def plan_and_harvest(
    path: Path, model: ModelRef, prompts: PromptSet, spec: CaptureSpec | None = SPEC, **more: Any
) -> HarvestPlan:
    """The plan, after it was compared with what the harvest then did."""
    asked = {"sinks": (), "settings": SETTINGS, **more}
    before = trace(path.parent)
    plan = planned(model, Store.planned(path, prompts), spec, **asked)
    assert trace(path.parent) == before
    known = {receipt.attempt for receipt in Store.open(path).receipts()} if path.exists() else set()
    store = Store.create(path, prompts)
    result = harvest(model, store, spec, certificate_prompts=0, **asked).raise_if_incomplete()
    made = [receipt for receipt in store.receipts() if receipt.attempt not in known]
    of_unit = {receipt.unit: receipt for receipt in made}
    assert plan.units == len(store.units)
    assert plan.prompts == len(prompts)
    assert plan.cells_missing == len(made)
    assert plan.units_missing == len(of_unit)
    assert plan.prompts_missing == sum(len(unit) for unit in store.units if unit.name in of_unit)
    assert plan.tokens == result.computed_tokens == sum(receipt.tokens for receipt in of_unit.values())
    selected = [read_tokens(store.location, receipt).column("selected").to_numpy() for receipt in of_unit.values()]
    assert plan.tokens_kept == sum(int(each.sum()) for each in selected)
    names = {name for receipt in made for name in receipt.columns}
    lacking = {name: column for name, column in plan.columns.items() if column.units_missing}
    assert lacking == {
        name: ColumnPlan(
            units_missing=sum(name in receipt.columns for receipt in made),
            bytes=sum(nbytes(receipt, name) for receipt in made if name in receipt.columns),
        )
        for name in names
    }
    assert plan.bytes == sum(nbytes(receipt, name) for receipt in made for name in receipt.columns)
    after = trace(path.parent)
    nothing = planned(model, Store.planned(path, prompts), spec, **asked)
    assert (nothing.cells_missing, nothing.units_missing, nothing.tokens, nothing.bytes, nothing.flops) == (0,) * 5
    assert nothing.units == plan.units
    assert trace(path.parent) == after
    return plan


def block_parameters(model: ModelRef, blocks: int) -> int:
    """Of the first blocks, counted in the loaded model."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
    layers: Sequence[Any] = loaded.model.layers[:blocks]
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def test_new_store_resumed_extended_and_shared(models: dict[str, ModelRef], tmp_path: Path) -> None:
    path, model = tmp_path / "s", models["llama"]
    new = plan_and_harvest(path, model, prompts_of(COUNT))
    assert new.units_missing == 2
    assert new.tokens_kept < new.tokens
    assert new.flops == 2 * block_parameters(model, 3) * new.tokens
    assert new.device_hours(100.0) == pytest.approx(new.tokens / 100 / 3600)

    store = Store.open(path)
    lost = store.receipt(model.id, store.units[1], store.captures[0].id)
    assert lost is not None
    (path / "receipts" / model.id / lost.unit / f"{lost.capture}.json").unlink()
    resumed = plan_and_harvest(path, model, prompts_of(COUNT))
    assert (resumed.cells_missing, resumed.tokens) == (1, lost.tokens)

    appended = plan_and_harvest(path, model, prompts_of(COUNT + 7))
    assert (appended.units, appended.units_missing, appended.prompts_missing) == (3, 1, 7)

    more = CaptureSpec(sites="resid_post.0,heads.2", tokens="every:2")
    site = plan_and_harvest(path, model, prompts_of(COUNT + 7), more)
    assert site.cells_missing == 3
    assert site.columns["heads.2"] == ColumnPlan(units_missing=0, bytes=0)
    assert site.flops == 2 * block_parameters(model, 1) * site.tokens

    sinks = plan_and_harvest(
        path, model, prompts_of(COUNT + 7), None, tokens="every:2",
        sinks=(LogProbSink(), Int8Sink(sites=("mlp_out.1",))),
    )  # fmt: skip
    assert sinks.columns.keys() == {"logprob", "entropy", "int8.mlp_out.1", "int8-scale.mlp_out.1"}
    assert sinks.flops == 2 * block_parameters(model, 4) * sinks.tokens

    other = plan_and_harvest(path, models["gpt2"], prompts_of(COUNT + 7))
    assert other.cells_missing == 3


@pytest.mark.parametrize(("site", "blocks"), [("resid_pre.0", 0), ("resid_pre.2", 2), ("attn_in.2", 3)])
def test_flops_are_of_the_blocks_before_the_site(
    models: dict[str, ModelRef], tmp_path: Path, site: str, blocks: int
) -> None:
    model, store = models["llama"], Store.planned(tmp_path / "s", prompts_of(3))
    plan = planned(model, store, CaptureSpec(sites=site), settings=SETTINGS)
    assert plan.flops == 2 * block_parameters(model, blocks) * plan.tokens


def test_a_site_that_one_unit_lacks_is_planned_with_its_companions(models: dict[str, ModelRef], tmp_path: Path) -> None:
    path, model = tmp_path / "s", models["llama"]
    plan_and_harvest(path, model, prompts_of(30))
    one = plan_and_harvest(path, model, prompts_of(33), CaptureSpec(sites="resid_post.1", tokens="every:2"))
    assert one.columns.keys() == {"resid_post.1", "heads.2", "resid_pre.1"}


@pytest.mark.parametrize("reduce", ["mean", "ema:0.5"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_rows_per_prompt_and_other_architectures(
    models: dict[str, ModelRef], tmp_path: Path, architecture: str, reduce: str
) -> None:
    sites = "neurons.1,attn_in.2,heads.3.1" if architecture != "mixtral" else "router.1,mlp_in.2"
    plan_and_harvest(tmp_path / "s", models[architecture], prompts_of(20), CaptureSpec(sites=sites, reduce=reduce))


def test_long_prompts_are_cut_in_the_plan_too(models: dict[str, ModelRef], tmp_path: Path) -> None:
    prompts = PromptSet.from_rows([{"text": "word " * 300}, {"text": "short"}])
    with pytest.raises(InputError, match="--truncate"):
        planned(models["llama"], Store.planned(tmp_path / "s", prompts), SPEC, settings=SETTINGS)
    plan_and_harvest(tmp_path / "s", models["llama"], prompts, truncate=True)


def test_a_module_whose_width_cannot_be_told_has_no_size(models: dict[str, ModelRef], tmp_path: Path) -> None:
    from analysis.sinks import ProjectionSink
    from store import Direction

    # The activation function is as wide as the MLP, which its class does not tell.
    site = "module:model.layers.1.mlp.act_fn"
    sink = ProjectionSink(directions=(Direction(name="d", site=site, vector=np.ones(48, np.float32)),))
    plan = planned(
        models["llama"], Store.planned(tmp_path / "s", prompts_of(3)), None, sinks=(sink,), settings=SETTINGS
    )
    assert list(plan.columns.values()) == [ColumnPlan(units_missing=1, bytes=None)]
    assert plan.bytes is None
    assert plan.flops == 2 * block_parameters(models["llama"], 2) * plan.tokens


def test_what_a_harvest_refuses_a_plan_refuses_and_nothing_is_written(
    models: dict[str, ModelRef], tmp_path: Path
) -> None:
    path, model = tmp_path / "s", models["llama"]
    plan_and_harvest(path, model, prompts_of(20))
    before = trace(tmp_path)
    refused = {
        "tokens was 'every:2', now 'last'": (prompts_of(25), CaptureSpec(sites="resid_post.1", tokens="last")),
        "row 0": (PromptSet.from_rows([{"text": f"other {row}"} for row in range(25)]), SPEC),
        "0 to 3": (prompts_of(20), CaptureSpec(sites="resid_post.4")),
        "begun together": (prompts_of(25), None),
    }
    for message, (prompts, spec) in refused.items():
        more: dict[str, Any] = {"settings": SETTINGS}
        if spec is None:
            more |= {"tokens": "every:2", "sinks": (Int8Sink(sites=("mlp_out.1",)), LogProbSink())}
            harvest(model, Store.open(path), None, certificate_prompts=0, **more).raise_if_incomplete()
            before = trace(tmp_path)
            more["sinks"] = (LogProbSink(),)
        for ask in (planned, checked):
            with pytest.raises(InputError, match=message):
                ask(model, Store.planned(path, prompts), spec, **more)
        assert trace(tmp_path) == before
