"""Wires and runs the other three: pools, commands, reports. Only here is ray imported."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.ray_pool import RayPool

__all__ = ["RayPool"]


def __getattr__(name: str) -> Any:
    """Ray takes a second to import: only those who ask for the pool pay it."""
    if name == "RayPool":
        from cluster.ray_pool import RayPool

        return RayPool
    raise AttributeError(f"module 'cluster' has no attribute {name!r}")
