"""What is kept, and the promise about it; the nouns every other package speaks."""

from store.capture import Capture, ColumnSpec
from store.capture_spec import CaptureSpec
from store.cell import Receipt
from store.column import Column
from store.direction import Direction, load_directions, save_directions
from store.errors import DamageError, IncompleteError, InputError, ThresherError
from store.finding import Finding
from store.model_ref import ModelRef
from store.pool import Outcome, Pool, SerialPool
from store.prompt_set import PromptSet
from store.selection import Selection
from store.sink import Sink, SinkBatch, SinkColumn
from store.site import Site, expand_sites
from store.store import Store
from store.summary import ColumnSummary, Summary
from store.unit import Unit
from store.zarr_import import register_with_zarr

__all__ = [
    "Capture",
    "CaptureSpec",
    "Column",
    "ColumnSpec",
    "ColumnSummary",
    "DamageError",
    "Direction",
    "Finding",
    "IncompleteError",
    "InputError",
    "ModelRef",
    "Outcome",
    "Pool",
    "PromptSet",
    "Receipt",
    "Selection",
    "SerialPool",
    "Sink",
    "SinkBatch",
    "SinkColumn",
    "Site",
    "Store",
    "Summary",
    "ThresherError",
    "Unit",
    "expand_sites",
    "load_directions",
    "save_directions",
]

register_with_zarr()
