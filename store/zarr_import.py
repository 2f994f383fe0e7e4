"""zarr-python is told of bfloat16 when it is imported, before or after this package, and not sooner.

Its import takes longer than most of our commands. It collects the entry points of the group `zarr.data_type`, ours
among them, but as of 3.1.6 never loads them.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_zarr() -> None:
    """Registers the data type with a zarr that is imported already, or as soon as it is."""
    if "zarr" in sys.modules:
        import store.bfloat16  # noqa: F401  registers itself
    else:
        sys.meta_path.insert(0, _ZarrFinder())


class _ZarrFinder(MetaPathFinder):
    """Finds zarr where it would be found anyway, once, and adds a line to the end of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "zarr":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_register(module: ModuleType) -> None:
                execute(module)
                import store.bfloat16  # noqa: F401  registers itself

            spec.loader.exec_module = then_register  # type: ignore[method-assign]
        return spec
