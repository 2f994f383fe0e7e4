"""The certificate: what its bounds let pass, what they do not, and that what cannot be measured is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harvest import Certificate, NumericSettings, harvest
from harvest.certificate import BOUNDS, SiteError, _site_error
from harvest.recertify import recertify
from harvest.unit_run import UnitRun
from store import CaptureSpec, ModelRef, PromptSet, Store

WORDS = ["Paris", "is", "in", "France", "two", "plus", "four", "What", "city", "and", "where", "train"]
SETTINGS = NumericSettings(threads=1, token_budget=64)


def made(folder: Path, name: str, sites: str, *, dtype: str = "float32", n: int = 40, **options: Any) -> Any:
    random = np.random.default_rng(0)
    rows = [{"prompt_id": f"p{row}", "text": " ".join(random.choice(WORDS, 1 + row % 14))} for row in range(n)]
    store = Store.create(folder / "store", PromptSet.from_rows(rows))
    spec = CaptureSpec(sites=sites, **{key: options.pop(key) for key in ("tokens", "reduce") if key in options})
    model = ModelRef(name, dtype=dtype, adapter=options.pop("adapter", None)).resolve()
    return harvest(model, store, spec, settings=SETTINGS, **options)


def errors(*prompts: list[float]) -> list[np.ndarray]:
    return [np.array(rows) for rows in prompts]


def test_a_site_names_the_prompts_off_its_bounds() -> None:
    largest, median = BOUNDS["bfloat16"]
    names = ["a", "b", "c"]
    assert _site_error(names, errors([0.01], [0.02, largest], [0.0]), "bfloat16", routed=False).ok
    site = _site_error(names, errors([0.01], [0.02, 2 * largest], [0.0]), "bfloat16", routed=False)
    assert (site.ok, site.exceeding, site.beyond) == (False, ("b",), 1)
    site = _site_error(names, errors([2 * median] * 5, [0.01], [3 * median]), "bfloat16", routed=False)
    assert (site.ok, site.exceeding) == (False, ("a", "c"))
    site = _site_error(names, errors([float("nan")], [0.0] * 30, []), "float32", routed=False)
    assert (site.ok, site.exceeding) == (False, ("a",))
    assert Certificate.from_record(Certificate(prompts=("a",), sites={"x": site}).record()).sites["x"].exceeding == (
        "a",
    )


def test_experts_may_flip_in_half_precision_and_only_there() -> None:
    rows = errors([0.01] * 20, [2.0, 2.0])
    assert not _site_error(["a", "b"], rows, "bfloat16", routed=False).ok
    assert not _site_error(["a", "b"], rows, "float32", routed=True).ok
    site = _site_error(["a", "b"], rows, "bfloat16", routed=True)
    assert (site.ok, site.beyond, site.bound_beyond) == (True, 2, 2)
    assert not _site_error(["a", "b"], errors([0.01] * 19, [2.0] * 3), "bfloat16", routed=True).ok
    assert not _site_error(["a", "b"], errors([0.01] * 30, [float("nan")]), "bfloat16", routed=True).ok


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_holds_in_bfloat16_and_a_shifted_row_does_not(
    architecture: str, save_tiny: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = "resid_post.*,mlp_out.*,router.0,router.3"
    right = made(tmp_path / "right", save_tiny(architecture), sites, dtype="bfloat16", certificate_prompts=40)
    assert right.certificate.ok
    # The flips are there: without the allowance the bound would not hold.
    assert max(site.beyond for site in right.certificate.sites.values()) > 0
    plain = UnitRun.run

    def run_wrongly(self: Any, unit: Any, table: Any) -> Any:
        done = plain(self, unit, table)
        if self.budget > 1:
            for column in done.columns.values():
                column.values[:] = np.roll(column.values, 1, axis=0)
        return done

    monkeypatch.setattr(UnitRun, "run", run_wrongly)
    wrong = made(tmp_path / "wrong", save_tiny(architecture), sites, dtype="bfloat16", certificate_prompts=40)
    assert not any(site.ok for site in wrong.certificate.sites.values())


SPECS = [{}, {"tokens": "last"}, {"tokens": "every:3"}, {"reduce": "mean"}]


@pytest.mark.parametrize("spec", SPECS)
def test_made_again_it_says_the_same(save_tiny: Callable[[str], str], tmp_path: Path, spec: dict[str, str]) -> None:
    result = made(tmp_path, save_tiny("llama"), "resid_post.1,heads.2", dtype="bfloat16", **spec)
    (model,) = result.store.models
    ((_, again),) = recertify(result.store, model)
    assert again == result.certificate
    ((_, other),) = recertify(result.store, model, seed=1)
    assert other.ok
    assert other.prompts != again.prompts
    assert other == next(recertify(result.store, model, seed=1))[1]


def test_columns_of_several_harvests_each_get_theirs(save_tiny: Callable[[str], str], tmp_path: Path) -> None:
    result = made(tmp_path, save_tiny("llama"), "resid_post.1", dtype="bfloat16")
    (model,) = result.store.models
    for dtype, site in (("bfloat16", "resid_post.2"), ("float32", "attn_out.2")):
        harvest(replace(model, dtype=dtype), result.store, CaptureSpec(sites=site), settings=SETTINGS)
    found = [set(certificate.sites) for _, certificate in recertify(result.store, model)]
    assert found == [{"resid_post.1", "resid_post.2"}, {"attn_out.2"}]
    assert all(certificate.ok for _, certificate in recertify(result.store, model))


def test_a_model_that_is_gone_or_another_is_named_and_certifies_nothing(
    save_tiny: Callable[[str], str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for path in Path(save_tiny("llama")).iterdir():
        (home / path.name).write_bytes(path.read_bytes())
    result = made(tmp_path, str(home), "resid_post.1")
    (model,) = result.store.models
    # Another time stamp, the same content: the same model.
    weights = home / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    assert next(recertify(result.store, model))[1] == result.certificate
    tensors = load_file(weights)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, weights, metadata={"format": "pt"})
    ((_, other),) = recertify(result.store, model)
    assert "another one now" in str(other.left_out)
    home.rename(tmp_path / "moved")
    ((_, gone),) = recertify(result.store, model)
    assert str(home) in str(gone.left_out)
    assert not gone.ok
    assert gone == Certificate.from_record(gone.record())


def test_what_does_not_fit_is_left_out_and_the_harvest_stands(
    save_tiny: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = UnitRun.run

    def run(self: Any, unit: Any, table: Any) -> Any:
        if self.budget == 1:
            raise torch.OutOfMemoryError("tried to allocate 10 GiB")
        return plain(self, unit, table)

    monkeypatch.setattr(UnitRun, "run", run)
    result = made(tmp_path, save_tiny("llama"), "resid_post.1")
    assert result.complete
    assert "does not fit" in result.certificate.left_out
    assert result.certificate.sites == {}


def test_a_site_error_of_an_older_store_is_read() -> None:
    record = {"rows": 3, "largest": None, "median": 0.1, "bound_largest": 0.5, "bound_median": 0.1, "ok": False}
    certificate = Certificate.from_record({"prompts": ["a"], "sites": {"resid_post.1": record}})
    assert isinstance(certificate.sites["resid_post.1"], SiteError)
    assert not certificate.ok
