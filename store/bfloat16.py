"""The Zarr v3 data type `bfloat16`, which tensorstore knows and zarr-python does not yet.

Registered through the entry point group `zarr.data_type`, so a store opens with plain zarr-python wherever
thresher is installed. NumPy sees `ml_dtypes.bfloat16`. Fill values are floats, or the bit pattern in hex
(`"0x7fc0"`), as the Zarr v3 specification writes them for the float types.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype.common import DataTypeValidationError, HasEndianness, HasItemSize
from zarr.core.dtype.wrapper import ZDType
from zarr.dtype import data_type_registry

NATIVE = np.dtype(ml_dtypes.bfloat16)
_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[Any, Any], HasEndianness, HasItemSize):
    """`data_type: "bfloat16"`, little-endian: reading big-endian chunks is refused, not guessed at."""

    dtype_cls: ClassVar[Any] = type(NATIVE)
    _zarr_v3_name: ClassVar[str] = "bfloat16"

    @property
    def item_size(self) -> int:
        return 2

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> TypeGuard[Any]:
        return bool(dtype == NATIVE)

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        if cls._check_native_dtype(dtype):
            return cls()
        raise DataTypeValidationError(f"{dtype} is not ml_dtypes.bfloat16")

    def to_native_dtype(self) -> Any:
        if self.endianness != "little":
            raise ValueError("big-endian bfloat16 is not supported: rewrite the array little-endian")
        return NATIVE

    @classmethod
    def _from_json_v2(cls, data: Any) -> Self:
        raise DataTypeValidationError("bfloat16 is a Zarr v3 data type: format 2 has no name for it")

    @classmethod
    def _from_json_v3(cls, data: Any) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"{data!r} is not the data type {cls._zarr_v3_name!r}")

    def to_json(self, zarr_format: int) -> Any:
        if zarr_format == 3:
            return self._zarr_v3_name
        raise ValueError("bfloat16 is a Zarr v3 data type: format 2 has no name for it")

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.floating, np.integer, NATIVE.type))

    def _cast_scalar_unchecked(self, data: Any) -> Any:
        return NATIVE.type(data)

    def cast_scalar(self, data: object) -> Any:
        if self._check_scalar(data):
            return self._cast_scalar_unchecked(data)
        raise TypeError(f"{data!r} is no number that a bfloat16 can hold")

    def default_scalar(self) -> Any:
        return NATIVE.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: int) -> Any:
        if isinstance(data, str) and data.startswith("0x"):
            return np.array(int(data, 16), dtype=np.uint16).view(NATIVE)[()]
        return NATIVE.type(_WORDS.get(data, data) if isinstance(data, str) else data)

    def to_json_scalar(self, data: Any, *, zarr_format: int) -> Any:
        value = float(data)
        if np.isnan(value):
            return "NaN"
        if np.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value


data_type_registry.register("bfloat16", BFloat16)  # zarr 3.1.6 collects the entry point but never loads it
