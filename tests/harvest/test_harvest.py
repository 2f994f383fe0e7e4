"""The harvest end to end on a tiny model: what is stored, resumed, quarantined, refused and certified."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from harvest import NumericSettings, harvest
from harvest.loading import load_model
from harvest.reader import Reader
from harvest.unit_run import UnitRun
from harvest.ways import ways_of
from store import CaptureSpec, IncompleteError, InputError, ModelRef, Outcome, PromptSet, SerialPool, Store
from store.removal import withdraw_cell

WORDS = ["Paris", "is", "in", "France", "two", "plus", "four", "What", "city", "巴黎"]


def prompts(n: int = 40) -> PromptSet:
    random = np.random.default_rng(0)
    rows = [
        {"prompt_id": f"p{row}", "text": " ".join(random.choice(WORDS, 1 + row % 9)), "label": row % 2}
        for row in range(n)
    ]
    return PromptSet.from_rows(rows)


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.unit.PROMPTS_PER_UNIT", 16)


@pytest.fixture
def model(save_tiny: Callable[[str], str]) -> ModelRef:
    return ModelRef(save_tiny("llama"), dtype="float32").resolve()


SETTINGS = NumericSettings(threads=1, token_budget=48, share_prefixes=False)
SPEC = CaptureSpec(sites="resid_post.1,heads.0")


def run(model: ModelRef, store: Store, spec: CaptureSpec | None = SPEC, **options: Any) -> Any:
    return harvest(model, store, spec, settings=options.pop("settings", SETTINGS), **options)


def plain_rows(model: ModelRef, table: Any, layer: int) -> list[np.ndarray]:
    """hidden_states of the whole model, prompt by prompt, by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.name)
    whole = transformers.AutoModelForCausalLM.from_pretrained(model.name).eval()
    rows = []
    for text in table.column("text").to_pylist():
        with torch.no_grad():
            out = whole(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        rows.append(out.hidden_states[layer + 1][0].numpy())
    return rows


def test_all_tokens_of_all_prompts_in_order(model: ModelRef, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", prompts())
    seen = []
    result = run(model, store, progress=seen.append)
    expected = plain_rows(model, store.prompts.table, 1)
    column = store.column(model, "resid_post.1")
    np.testing.assert_allclose(np.asarray(column), np.concatenate(expected), rtol=2e-4, atol=2e-5)
    tokens = store.tokens(model, "resid_post.1")
    assert tokens.column("prompt").to_pylist() == [row for row, part in enumerate(expected) for _ in part]
    assert tokens.column("position").to_pylist() == [at for part in expected for at in range(len(part))]
    assert result.complete
    assert (result.prompts, result.tokens) == (40, len(tokens)) == (seen[-1].prompts, seen[-1].tokens)
    assert result.digest == store.digest
    assert result.certificate.ok
    assert set(result.certificate.sites) == {"resid_post.1", "heads.0"}
    assert result.certificate.sites["resid_post.1"].largest < 1e-5


@pytest.mark.parametrize("reduce", ["mean", "max", "last", "ema:0.3"])
def test_reductions_give_a_row_per_prompt(model: ModelRef, tmp_path: Path, reduce: str) -> None:
    store = Store.create(tmp_path / "run", prompts())
    result = run(model, store, CaptureSpec(sites="resid_post.1", reduce=reduce))
    given = np.asarray(store.column(model, "resid_post.1"))
    for row, part in zip(given, plain_rows(model, store.prompts.table, 1), strict=True):
        if reduce.startswith("ema"):
            state = part[0]
            for value in part[1:]:
                state = 0.3 * value + 0.7 * state
        else:
            state = {"mean": part.mean(0), "max": part.max(0), "last": part[-1]}[reduce]
        np.testing.assert_allclose(row, state, rtol=1e-3, atol=1e-4)
    assert result.certificate.ok


def test_a_stored_dtype_of_its_own_and_no_certificate_when_none_is_asked(model: ModelRef, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", prompts(5))
    result = run(model, store, CaptureSpec(sites="resid_post.1", dtype="float16"), certificate_prompts=0)
    assert store.column(model, "resid_post.1").dtype == np.float16
    assert result.certificate is None


class Interrupted(SerialPool):
    """Loses its worker after some units, and never gets another."""

    def __init__(self, after: int) -> None:
        self.after = after

    def run(self, make_worker: Any, tasks: Sequence[Any]) -> Iterator[Outcome[Any, Any]]:
        lived, died = tasks[: self.after], tasks[self.after :]
        self.after -= len(lived)
        yield from super().run(make_worker, lived)
        yield from (Outcome(task=task, error="the worker died") for task in died)


def test_an_interrupted_harvest_resumes_and_recomputes_nothing(
    model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, Store.create(tmp_path / "whole", prompts())).digest
    store = Store.create(tmp_path / "run", prompts())
    result = run(model, store, pool=Interrupted(1))
    assert not result.complete
    assert "the worker died" in result.errors[0]
    with pytest.raises(IncompleteError, match="a rerun resumes"):
        result.raise_if_incomplete()
    forwards = count_calls(monkeypatch)
    result = run(model, store, certificate_prompts=0)
    assert result.complete
    assert result.digest == whole
    # The first four passes try out how the model can be run.
    assert sum(forwards[4:]) == sum(len(part) for part in plain_rows(model, store.prompts.table.slice(16), 0))
    forwards.clear()
    assert run(model, store, certificate_prompts=0).computed_tokens == 0
    assert forwards == []


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kept tokens of every forward pass from now on."""
    counts: list[int] = []
    plain = Reader.read

    def read(self: Reader, prompts: Any, keep: Any, **more: Any) -> Any:
        counts.append(sum(map(len, keep)))
        return plain(self, prompts, keep, **more)

    monkeypatch.setattr(Reader, "read", read)
    return counts


def test_a_site_added_later_is_computed_alone(model: ModelRef, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", prompts())
    run(model, store)
    before = {receipt.attempt for receipt in store.receipts()}
    run(model, store, CaptureSpec(sites="resid_post.1,heads.0,mlp_out.2"))
    after = list(store.receipts())
    assert before <= {receipt.attempt for receipt in after}
    assert {name for receipt in after if receipt.attempt not in before for name in receipt.columns} == {"mlp_out.2"}
    together = Store.create(tmp_path / "together", prompts())
    run(model, together, CaptureSpec(sites="mlp_out.2,resid_post.1,heads.0"))
    assert together.digest == store.digest


def test_the_same_name_with_other_settings_is_refused(model: ModelRef, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", prompts(5))
    run(model, store)
    with pytest.raises(InputError, match="token_budget was 48, now 64"):
        run(model, store, settings=replace(SETTINGS, token_budget=64))
    with pytest.raises(InputError, match="tokens was 'all', now 'last'"):
        run(model, store, replace(SPEC, tokens="last"))


def test_columns_begun_together_are_finished_together(model: ModelRef, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", prompts())
    run(model, store, pool=Interrupted(1))
    assert run(model, store, CaptureSpec(sites="resid_post.1")).complete
    whole = Store.create(tmp_path / "whole", prompts())
    run(model, whole)
    assert store.complete
    assert store.digest == whole.digest


def test_a_certificate_is_stored_and_not_made_twice(model: ModelRef, tmp_path: Path, monkeypatch: Any) -> None:
    store = Store.create(tmp_path / "run", prompts())
    made = run(model, store).certificate
    assert made is not None
    assert [record["ok"] for record in store.certificates()] == [True]

    def never(*given: Any) -> None:
        raise AssertionError("the certificate of an unchanged store was made again")

    monkeypatch.setattr("harvest.run.certify", never)
    assert run(model, store).certificate == made


def fail_on(monkeypatch: pytest.MonkeyPatch, token: int, error: Exception) -> None:
    """A model that cannot take one token id."""
    plain = Reader.read

    def read(self: Reader, prompts: Any, keep: Any, **more: Any) -> Any:
        if any((tokens == token).any() for tokens in prompts):
            raise error
        return plain(self, prompts, keep, **more)

    monkeypatch.setattr(Reader, "read", read)


def test_a_prompt_that_fails_alone_is_quarantined_and_the_others_keep_their_bits(
    model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    rows = prompts().table.to_pylist()
    rows[20]["text"] = "Paris ~ is"
    some = PromptSet.from_rows(rows)
    whole = Store.create(tmp_path / "whole", some)
    run(model, whole)
    fail_on(monkeypatch, tokenizer("~", add_special_tokens=False).input_ids[0], RuntimeError("cannot take it\nat all"))
    store = Store.create(tmp_path / "run", some)
    result = run(model, store)
    assert result.quarantined == ({"prompt_id": "p20", "reason": "cannot take it"},)
    assert not result.complete
    with pytest.raises(IncompleteError, match="'p20': cannot take it"):
        result.raise_if_incomplete()
    tokens = whole.tokens(model, "resid_post.1")
    others = np.flatnonzero(tokens.column("prompt").to_numpy() != 20)
    np.testing.assert_array_equal(
        np.asarray(store.column(model, "resid_post.1")), np.asarray(whole.column(model, "resid_post.1"))[others]
    )
    assert run(model, store, max_quarantined=1).complete
    reduced = run(model, Store.create(tmp_path / "mean", some), replace(SPEC, reduce="mean"), max_quarantined=1)
    column = np.asarray(reduced.store.column(model, "resid_post.1"))
    assert np.flatnonzero(np.isnan(column).any(1)).tolist() == [20]


def test_an_error_that_no_prompt_causes_is_raised(
    model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Reader.read

    def read(self: Reader, prompts: Any, keep: Any, **more: Any) -> Any:
        if len(prompts) > 1:
            raise RuntimeError("a fault of ours")
        return plain(self, prompts, keep, **more)

    monkeypatch.setattr(Reader, "read", read)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(model, Store.create(tmp_path / "run", prompts()))


def test_short_memory_halves_the_batch_and_is_noted(
    model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Store.create(tmp_path / "whole", prompts())
    run(model, whole)
    plain = Reader.read

    def read(self: Reader, prompts: Any, keep: Any, **more: Any) -> Any:
        if sum(map(len, prompts)) > 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, prompts, keep, **more)

    monkeypatch.setattr(Reader, "read", read)
    store = Store.create(tmp_path / "run", prompts())
    result = run(model, store)
    assert result.complete
    assert all(receipt.notes["halved"] > 0 for receipt in store.receipts())
    assert result.notes.halved == sum(receipt.notes["halved"] for receipt in store.receipts())
    np.testing.assert_allclose(
        np.asarray(store.column(model, "resid_post.1")),
        np.asarray(whole.column(model, "resid_post.1")),
        rtol=1e-4,
        atol=1e-5,
    )


def test_values_that_are_not_finite_are_counted(
    model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Reader.read

    def read(self: Reader, prompts: Any, keep: Any, **more: Any) -> Any:
        found = {site: values.clone() for site, values in plain(self, prompts, keep, **more).items()}
        if "resid_post.1" in found:
            found["resid_post.1"][0, :3] = float("nan")
            found["resid_post.1"][0, 3] = float("inf")
        return found

    monkeypatch.setattr(Reader, "read", read)
    store = Store.create(tmp_path / "run", prompts(3))
    result = run(model, store)
    (receipt,) = store.receipts()
    assert receipt.notes["nonfinite"] == {"resid_post.1": 4} == result.notes.nonfinite
    assert np.count_nonzero(~np.isfinite(np.asarray(store.column(model, "resid_post.1")))) == 4
    assert not result.certificate.ok


def test_cells_made_with_other_versions_are_told_apart(model: ModelRef, tmp_path: Path, monkeypatch: Any) -> None:
    store = Store.create(tmp_path / "run", prompts())
    first = run(model, store, certificate_prompts=0).notes
    assert not first.differing
    assert first.made_with[0]["torch"] == version("torch")
    assert (first.made_with[0]["packed"], first.made_with[0]["prefixes"]) == (True, False)
    withdraw_cell(store, model.id, store.units[0].name, store.captures[0].id)
    monkeypatch.setattr("harvest.worker.version", lambda name: "9.9" if name == "torch" else version(name))
    again = run(model, store, certificate_prompts=0).notes
    assert {name: set(values) for name, values in again.differing.items()} == {"torch": {version("torch"), "9.9"}}


def test_a_wrong_row_breaks_the_certificate(model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = UnitRun.run

    def run_wrongly(self: Any, unit: Any, table: Any) -> Any:
        done = plain(self, unit, table)
        if self.budget > 1:
            values = done.columns["resid_post.1"].values
            values[:] = np.roll(values, 1, axis=0)
        return done

    monkeypatch.setattr(UnitRun, "run", run_wrongly)
    result = run(model, Store.create(tmp_path / "run", prompts(20)))
    assert not result.certificate.ok
    assert result.certificate.sites["heads.0"].ok


def test_bad_requests_are_refused_before_anything_is_written(model: ModelRef, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", prompts(5))
    for spec, says in (
        (CaptureSpec(sites="resid_post.9"), "from 0 to 3"),
        (CaptureSpec(sites="router.1"), "no place router.1"),
        (CaptureSpec(sites="resid_post.1", tokens="response"), "no response"),
        (CaptureSpec(sites="resid_post.1", tokens="role:narrator"), "roles are"),
    ):
        with pytest.raises(InputError, match=says):
            run(model, store, spec)
        assert store.columns == []
        assert not store.wanted()
    with pytest.raises(InputError, match="nothing to harvest"):
        run(model, store, None)


def test_long_prompts_are_refused_or_cut(model: ModelRef, tmp_path: Path) -> None:
    rows = [{"prompt_id": "short", "text": "Paris"}, {"prompt_id": "long", "text": "~" * 300}]
    store = Store.create(tmp_path / "run", PromptSet.from_rows(rows))
    with pytest.raises(InputError, match="'long' has 301 tokens"):
        run(model, store)
    result = run(model, store, truncate=True)
    assert (result.complete, result.notes.truncated) == (True, 1)
    (receipt,) = store.receipts()
    assert receipt.notes["truncated"] == {"long": 301 - 128}


def test_a_model_that_changes_after_it_was_hashed_is_not_loaded(
    save_tiny: Callable[[str], str], tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(save_tiny("llama"), tmp_path / "model")
    ref = ModelRef(str(folder), dtype="float32").resolve()
    load_model(ref)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match="changed after it was hashed"):
        load_model(ref)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "qwen3_moe"])
def test_other_architectures_end_to_end_in_bfloat16(
    save_tiny: Callable[[str], str], tmp_path: Path, architecture: str
) -> None:
    ref = ModelRef(save_tiny(architecture)).resolve()
    result = run(ref, Store.create(tmp_path / "run", prompts(20)), CaptureSpec(sites="resid_post.*"))
    assert result.complete
    assert len(result.certificate.sites) == 4


def headed(n: int = 40) -> PromptSet:
    """Prompts with one of two few-shot headers, or none."""
    rows = prompts(n).table.to_pylist()
    headers = ("two plus two is four. four plus two is Paris. ", "What city is in France? Paris is. ", "")
    for number, row in enumerate(rows):
        row["text"] = headers[number % 3] + row["text"]
    return PromptSet.from_rows(rows)


@pytest.mark.parametrize(
    "spec", [SPEC, CaptureSpec(sites="resid_post.3", tokens="every:3"), replace(SPEC, reduce="mean")]
)
def test_shared_prefixes_give_the_same_rows_with_fewer_tokens(
    model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: CaptureSpec
) -> None:
    ran: list[int] = []
    plain = Reader.read

    def read(self: Reader, prompts: Any, keep: Any, *, prefix: Any = None, **more: Any) -> Any:
        ran.append(sum(len(tokens) - (prefix.length if prefix else 0) for tokens in prompts))
        return plain(self, prompts, keep, prefix=prefix, **more)

    monkeypatch.setattr(Reader, "read", read)
    whole, shared = Store.create(tmp_path / "whole", headed()), Store.create(tmp_path / "shared", headed())
    run(model, whole, spec, certificate_prompts=0)
    tokens = sum(ran)
    ran.clear()
    settings = replace(SETTINGS, share_prefixes=True)
    result = run(model, shared, spec, settings=settings, certificate_prompts=0)
    assert sum(ran) < 0.7 * tokens
    for site in whole.columns:
        np.testing.assert_allclose(
            np.asarray(shared.column(model, site)), np.asarray(whole.column(model, site)), rtol=1e-4, atol=1e-5
        )
    assert run(model, shared, spec, settings=settings).certificate.ok
    assert result.complete


@pytest.mark.parametrize(
    "architecture",
    [
        "llama",
        "qwen3",
        "mistral",
        "gemma2",
        "gemma3",
        "gpt2",
        "gpt_neox",
        "phi3",
        "olmo2",
        "mixtral",
        "qwen3_moe",
        "multimodal",
    ],
)
def test_shared_prefixes_on_every_architecture(
    save_tiny: Callable[[str], str], tmp_path: Path, architecture: str
) -> None:
    ref = ModelRef(save_tiny(architecture), dtype="float32").resolve()
    assert ways_of(load_model(ref)).share
    stores = []
    for share in (False, True):
        store = Store.create(tmp_path / str(share), headed(16))
        settings = replace(SETTINGS, share_prefixes=share)
        run(ref, store, CaptureSpec(sites="resid_post.3,attn_in.2"), settings=settings, certificate_prompts=0)
        stores.append(np.asarray(store.column(ref, "resid_post.3")))
    error = np.linalg.norm(stores[1] - stores[0], axis=1) / np.linalg.norm(stores[0], axis=1)
    assert error.max() < 1e-5
