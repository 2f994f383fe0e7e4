"""Arrays as they lie on the disk: what others decode of them is what was given, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc

import store.arrays
import store.blosc_frame
from store.arrays import DTYPES, encode_array
from store.blosc_frame import encode_frame
from store.digest import digest_array, sha256


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Of every dtype and up to three dimensions: noise, smooth, constant, or all bits at random (with NaN and Inf)."""
    dtype = numpy_dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 40), min_size=1, max_size=3)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(("noise", "constant", "bits")))
    if kind == "bits" and dtype.kind != "b":
        return random.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    values = np.full(shape, 3.0) if kind == "constant" else random.normal(size=shape) * 20
    return values.astype(dtype)


def bits(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values).tobytes()


@given(values=arrays(), chunk=st.sampled_from((1, 7, 1024)), shard=st.sampled_from((1, 2000, 1 << 30)))
@settings(max_examples=80, deadline=None)
def test_others_decode_what_was_encoded(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, chunk: int, shard: int
) -> None:
    folder = tmp_path_factory.mktemp("array")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.arrays, "CHUNK_ROWS", chunk)
        patch.setattr(store.arrays, "SMALLEST_CHUNK_BYTES", 1)
        patch.setattr(store.arrays, "LARGEST_SHARD_BYTES", shard)
        encoded = encode_array(values)
    for name, file in encoded.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(file.data)
        assert file.sha256 == sha256(file.data)
    assert encoded.digest == digest_array(values)
    # A chunk that is missing would be an error here: every chunk is written, those of zeros too.
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}, "fill_missing_data_reads": False}
    assert bits(tensorstore.open(spec).result().read().result()) == bits(values)
    found = zarr.open_array(folder, mode="r")
    assert found.dtype == values.dtype
    assert bits(found[:]) == bits(values)


@given(values=arrays().filter(lambda values: values.size > 0), block=st.sampled_from((8, 40, 1000, 1 << 19)))
@settings(max_examples=200, deadline=None)
def test_blosc_decodes_a_frame(values: np.ndarray, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.blosc_frame, "BLOCK_BYTES", block)
        frame = encode_frame(values)
    assert bytes(Blosc().decode(frame)) == bits(values)
    assert len(frame) <= values.nbytes + 16


def test_residuals_shrink_and_big_endian_is_turned() -> None:
    """Normal values in bfloat16: 8 bits of mantissa and sign are noise, the exponent has under three bits."""
    values = np.random.default_rng(0).normal(size=(4000, 576)).astype(ml_dtypes.bfloat16)
    encoded = encode_array(values)
    assert len(encoded.files["c/0/0"].data) / values.nbytes < 0.70
    swapped = np.arange(1000, dtype=">i4")
    turned = encode_array(swapped)
    assert turned.digest == encode_array(swapped.astype("<i4")).digest
    assert turned.files["c/0"].data == encode_array(swapped.astype("<i4")).files["c/0"].data
