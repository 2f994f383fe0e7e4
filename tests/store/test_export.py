"""Exports: what others read is what the store holds, bit for bit or, where a format lacks bfloat16, value for value."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors
import tensorstore
import torch
from safetensors.torch import load_file

from store import InputError, ModelRef, Store
from store.export import FORMATS, dataset_folder, export_store, source
from tests.store.factory import cell_of, fill, filled_store, model_named, prompts_of

RESID, SCORES = "resid_post.1", "scores.m"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, ModelRef]:
    return filled_store(tmp_path_factory.mktemp("export") / "s")


def values_of(filled: tuple[Store, ModelRef], name: str) -> np.ndarray:
    """What was published, without going through the store."""
    store, model = filled
    return np.concatenate([cell_of(model, unit)[0][name] for unit in store.units])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces, files and shards even of a small store."""
    monkeypatch.setattr(source, "PIECE_BYTES", 200 * 48)
    monkeypatch.setattr(dataset_folder, "FILE_BYTES", 30_000)


def check_tables(filled: tuple[Store, ModelRef], folder: Path) -> None:
    store, model = filled
    for name in (RESID, SCORES):
        table = pyarrow.parquet.read_table(folder / name / "tokens.parquet")
        want = store.tokens(model, name)
        assert table.column_names == want.column_names
        assert table.to_pylist() == want.to_pylist()
    assert pyarrow.parquet.read_table(folder / "prompts.parquet").equals(store.prompts.table)


def test_numpy(filled: tuple[Store, ModelRef], tmp_path: Path) -> None:
    export = export_store(filled[0], tmp_path / "out", to="numpy")
    resid = np.load(export.folder / RESID / "values.npy", mmap_mode="r")
    assert resid.dtype == np.float32
    assert np.array_equal(resid.astype(ml_dtypes.bfloat16).view(np.int16), values_of(filled, RESID).view(np.int16))
    assert np.array_equal(resid, values_of(filled, RESID).astype(np.float32))
    assert np.array_equal(np.load(export.folder / SCORES / "values.npy"), values_of(filled, SCORES))
    check_tables(filled, export.folder)


def test_safetensors(filled: tuple[Store, ModelRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.export.arrays.SHARD_BYTES", 1000 * 48)
    export = export_store(filled[0], tmp_path / "out", to="safetensors")
    files = sorted((export.folder / RESID).glob("*.safetensors"))
    assert [file.name for file in files] == [f"rows-{i:05d}-of-00003.safetensors" for i in range(3)]
    values = torch.cat([load_file(file)["values"] for file in files])
    assert values.dtype == torch.bfloat16
    assert np.array_equal(values.view(torch.int16).numpy(), values_of(filled, RESID).view(np.int16))
    with safetensors.safe_open(files[2], framework="pt") as file:
        assert file.metadata() == {"column": RESID, "first_row": "2000", "rows": "2400"}
    check_tables(filled, export.folder)


def test_zarr_without_thresher(filled: tuple[Store, ModelRef], tmp_path: Path) -> None:
    export = export_store(filled[0], tmp_path / "out", to="zarr")
    want = values_of(filled, RESID).astype(np.float32)
    np.save(tmp_path / "want.npy", want)
    # A process of its own, where nothing of ours has registered anything.
    script = (
        "import sys, numpy, zarr\n"
        "group = zarr.open_group(sys.argv[1], mode='r')\n"
        f"assert sorted(group.array_keys()) == ['{RESID}', '{SCORES}'], list(group.array_keys())\n"
        f"assert numpy.array_equal(group['{RESID}'][:], numpy.load(sys.argv[2]))\n"
        "assert 'store' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script, str(export.folder), str(tmp_path / "want.npy")], check=True)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{export.folder}/{RESID}/"}}
    assert np.array_equal(tensorstore.open(spec).result().read().result(), want)
    check_tables(filled, export.folder)


def test_dataset_folder_as_arrow(filled: tuple[Store, ModelRef], tmp_path: Path) -> None:
    store, model = filled
    export = export_store(store, tmp_path / "out", to="hf")
    folder = export.folder / RESID
    state = json.loads((folder / "state.json").read_text())
    files = [entry["filename"] for entry in state["_data_files"]]
    assert len(files) > 1
    table = pa.concat_tables([pa.ipc.open_stream((folder / name).read_bytes()).read_all() for name in files])
    flat = table.column("values").combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    assert np.array_equal(flat, values_of(filled, RESID).astype(np.float32))
    tokens = store.tokens(model, RESID)
    for name in tokens.column_names:
        assert table.column(name).to_pylist() == tokens.column(name).to_pylist()
    prompts = tokens.column("prompt").to_numpy()
    assert np.array_equal(table.column("label").to_numpy(), store.prompts.labels("label")[prompts])
    assert table.column("group").to_pylist() == store.prompts.labels("group")[prompts].tolist()


def test_datasets_reads_its_folder(filled: tuple[Store, ModelRef], tmp_path: Path) -> None:
    export = export_store(filled[0], tmp_path / "out", to="hf")
    both = datasets.load_from_disk(str(export.folder))
    assert sorted(both) == [RESID, SCORES]
    found = both[RESID].with_format("numpy")
    assert np.array_equal(found[:]["values"], values_of(filled, RESID).astype(np.float32))
    assert found[2399]["prompt_id"] == "p1199"


def test_saelens_reads_its_cache(filled: tuple[Store, ModelRef], tmp_path: Path) -> None:
    """Read as `ActivationsStore.load_cached_activation_dataset` of sae-lens 6.54.12 reads it."""
    store, model = filled
    export = export_store(store, tmp_path / "out", to="saelens", columns=[RESID], context=7)
    hook = export.manifest["columns"][0]["hook_name"]
    assert hook == "blocks.1.hook_resid_post"
    cached = datasets.load_from_disk(str(export.folder / RESID))
    cached.set_format(type="torch", columns=[hook, "token_ids"], dtype=torch.float32)
    assert cached.features[hook].shape == (7, 24)
    assert len(cached) == 2400 // 7
    kept = 2400 // 7 * 7
    whole = cached[:]
    assert np.array_equal(whole[hook].numpy().reshape(kept, 24), values_of(filled, RESID)[:kept].astype(np.float32))
    ids = store.tokens(model, RESID).column("token_id").to_numpy()[:kept]
    assert np.array_equal(whole["token_ids"].numpy().reshape(-1), ids)
    with pytest.raises(InputError, match="fewer than one context of 9999"):
        export_store(store, tmp_path / "long", to="saelens", columns=[RESID], context=9999)


def test_sites_have_the_names_of_their_hooks() -> None:
    assert dataset_folder.hook_name("attn_out.3") == "blocks.3.hook_attn_out"
    assert dataset_folder.hook_name("scores.m") == "scores.m"
    assert dataset_folder.hook_name("router.2") == "router.2"


def test_an_export_is_whole_or_not_there(filled: tuple[Store, ModelRef], tmp_path: Path) -> None:
    store, model = filled
    out = tmp_path / "out"

    def killed(columns: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_store(store, out, to="numpy", progress=killed)
    assert not out.exists()
    first = export_store(store, out, to="numpy")
    stamp = (out / RESID / "values.npy").stat().st_mtime_ns
    again = export_store(store, out, to="numpy", model=model.id)
    assert (first.again, again.again) == (False, True)
    assert again.manifest == first.manifest
    assert (out / RESID / "values.npy").stat().st_mtime_ns == stamp
    for other in ({"to": "zarr"}, {"to": "numpy", "columns": [RESID]}):
        with pytest.raises(InputError, match="holds something else"):
            export_store(store, out, **other)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", prompts_of(600))
    with pytest.raises(InputError, match="no model yet"):
        export_store(store, tmp_path / "out", to="numpy")
    one, two = model_named("a"), model_named("b")
    fill(store, one)
    fill(store, two)
    with pytest.raises(InputError, match=f"several models: give --model, one of {one.id}, {two.id}"):
        export_store(store, tmp_path / "out", to="numpy")
    with pytest.raises(InputError, match="no column 'colour'"):
        export_store(store, tmp_path / "out", to="numpy", model=two.id, columns=["colour"])
    with pytest.raises(InputError, match="unknown format 'csv': use one of numpy"):
        export_store(store, tmp_path / "out", to="csv", model=two.id)
    assert len(FORMATS) == 5
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]
