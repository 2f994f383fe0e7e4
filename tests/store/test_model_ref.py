"""Which models may be loaded, and what their digest speaks of."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from store import InputError, ModelRef


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, small and sound."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"w": np.zeros(3, np.float32)}, place / "model.safetensors")
    return place


def test_the_digest_is_of_contents_not_of_places(folder: Path, tmp_path: Path) -> None:
    first = ModelRef(str(folder)).resolve()
    moved = folder.rename(tmp_path / "moved")
    assert ModelRef(str(moved)).resolve().digest == first.digest
    assert ModelRef(str(moved), dtype="float32").resolve().digest == first.digest
    save_file({"w": np.ones(3, np.float32)}, moved / "model.safetensors")
    assert ModelRef(str(moved)).resolve().digest != first.digest
    assert ModelRef.from_record(first.record()) == first


def test_a_file_changed_after_hashing_is_noticed(folder: Path) -> None:
    ref = ModelRef(str(folder)).resolve()
    ref.check_unchanged()
    save_file({"w": np.ones(4, np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="changed after it was hashed"):
        ref.check_unchanged()


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _escape(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    index = {"weight_map": {"w": "../x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _link(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "x.safetensors")


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"w": "model-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _both(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))


def _adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "another"}))


def _auto_map(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoConfig": "x.Y"}}))


def _nested_code(folder: Path) -> None:
    text = {"model_type": "llama", "text_config": {"trust_remote_code": True}}
    (folder / "config.json").write_text(json.dumps(text))


def _internal(folder: Path) -> None:
    text = {"model_type": "llama", "_attn_implementation_internal": "evil/kernel"}
    (folder / "config.json").write_text(json.dumps(text))


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{" * 100_000)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_pickle, "pickle"),
        (_escape, "leads out of its folder"),
        (_link, "leads out of its folder"),
        (_missing_shard, "missing shard"),
        (_both, "is a guess"),
        (_adapter_beside, "adapter_config.json"),
        (_auto_map, "auto_map"),
        (_nested_code, "trust_remote_code"),
        (_internal, "_internal"),
        (_broken_config, "not readable JSON"),
    ],
)
def test_what_may_not_be_loaded_is_refused_by_name(folder: Path, harm, says: str) -> None:
    harm(folder)
    with pytest.raises(InputError, match=says):
        ModelRef(str(folder)).resolve()


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(InputError, match="leave revision 'abc' out"):
        ModelRef(str(folder), revision="abc").resolve()
