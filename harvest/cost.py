"""What a unit costs before it is run: bytes of its columns, and the part of the model that it needs."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import torch

from harvest.architecture import Decoder
from harvest.loading import skeleton
from harvest.widths import site_widths
from harvest.worker import Job, sites_of
from store import Sink, SinkBatch, Site, Unit
from store.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Costs of one job, from the model without its weights.

    sinks        copies of the job's, to be tried out on no rows
    widths       site -> numbers per row
    depths       site -> blocks that run until it is reached
    parameters_until  of the first 0, 1, 2, … blocks
    known_bytes  column -> bytes of a unit, for columns that are too large to be tried out
    """

    sinks: tuple[Sink, ...]
    dtype: torch.dtype
    widths: Mapping[str, int]
    depths: Mapping[str, int]
    parameters_until: Sequence[int]
    known_bytes: Mapping[str, int]

    @staticmethod
    def of(job: Job, known_bytes: Mapping[str, int]) -> "Cost":
        decoder = skeleton(job.model)
        # Modules that an adapter brings along are only there once it is loaded.
        sites = [site for site in sites_of(job.sinks) if job.model.adapter is None or not site.startswith("module:")]
        blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in decoder.blocks]
        return Cost(
            sinks=copy.deepcopy(job.sinks),
            dtype=getattr(torch, job.model.dtype),
            widths=site_widths(job.model, sites),
            depths={site: _depth(decoder, Site.parse(site)) for site in sites},
            parameters_until=[0, *accumulate(blocks)],
            known_bytes=known_bytes,
        )

    def parameters(self, sinks: Sequence[Sink]) -> int:
        """Of the blocks that run for these sinks, each block whole."""
        whole = len(self.parameters_until) - 1
        depths = [self.depths.get(site, whole) for site in sites_of(sinks)]
        logits = any(getattr(sink, "needs_logits", False) for sink in sinks)
        return self.parameters_until[whole if logits else max(depths, default=0)]

    def bytes_of(self, sink: Sink, unit: Unit, prompts: pa.Table, kept: int) -> dict[str, int]:
        """Bytes of the sink's columns of a unit with `kept` selected tokens; of those that can be told.

        The sink makes its columns of no rows, so that their shapes and dtypes are its own word. A `module:` path may be
        wider than can be known before it is run: what cannot be made of it is left out.
        """
        if sink.columns.keys() <= self.known_bytes.keys():
            return {name: self.known_bytes[name] for name in sink.columns}
        if not set(sink.sites) <= self.widths.keys():
            return {}
        none = np.zeros(0, np.int32)
        rows = {site: torch.zeros((0, self.widths[site]), dtype=self.dtype) for site in sink.sites}
        try:
            with torch.inference_mode():
                sink.start(unit, prompts)
                role = none.astype(np.int8)
                sink.add(SinkBatch(activations=rows, prompt=none, position=none, token_id=none, role=role))
                made = sink.finish()
        except InputError:
            if not any(site.startswith("module:") for site in sink.sites):
                raise
            return {}
        return {
            column.name: column.values.itemsize * int(np.prod(column.values.shape[1:])) * kept
            if column.rows == "token"
            else column.values.nbytes
            for column in made
        }


def _depth(decoder: Decoder, site: Site) -> int:
    """Blocks that run until `site` is reached; all of them for a module outside of the blocks."""
    if site.layer is not None:
        return int(site.layer) + (site.kind != "resid_pre")
    module = decoder.tap(site).module
    inside = (
        index + 1 for index, block in enumerate(decoder.blocks) if any(module is each for each in block.modules())
    )
    return next(inside, len(decoder.blocks))
