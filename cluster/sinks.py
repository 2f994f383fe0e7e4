"""The sinks that the options of `thresher harvest` ask for, and whether there is room for what they keep."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.probes.probe import load_probe
from analysis.sinks import ExemplarSink, MomentsSink, ProbeSink, ProjectionSink, second_moments_bytes
from harvest import Int8Sink, LogProbSink, count_layers
from harvest.loading import skeleton
from harvest.widths import site_widths
from store import Direction, InputError, ModelRef, PromptSet, Sink, Store, ThresherError, expand_sites, load_directions


@dataclass(frozen=True, kw_only=True)
class SinkOptions:
    """What a pass keeps besides raw activations, or instead of them.

    sites           patterns: where moments and int8 rows are taken
    moments         the label whose values have moments of their own; `folds` and `second_moments` are of them
    directions      a file of directions: their projections, a row per token; with `exemplars`, that many per unit
    probes          files of probes: their scores, a row per token
    """

    sites: str | None = None
    moments: str | None = None
    folds: int = 5
    second_moments: bool = False
    directions: str | None = None
    exemplars: int | None = None
    probes: tuple[str, ...] = ()
    log_prob: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        if self.second_moments and self.moments is None:
            raise InputError("--second-moments are of the moments: add --moments LABEL")
        if self.exemplars is not None and self.directions is None:
            raise InputError("--exemplars are of directions: add --directions FILE.safetensors")
        if self.sites is None and (self.moments is not None or self.int8):
            raise InputError("moments and int8 rows are taken at sites: say which with --sites")


def build_sinks(options: SinkOptions, model: ModelRef, prompts: PromptSet) -> list[Sink]:
    """One sink per site where a sink is of one site, so that a site added later costs no other.

    Raises InputError for a label, a file or a site that cannot be used, and directions or probes of another model.
    """
    sites = [] if options.sites is None else [str(site) for site in skeleton(model).sites(options.sites)]
    sinks: list[Sink] = []
    if options.moments is not None:
        sinks += MomentsSink.of(
            prompts,
            sites=sites,
            label=options.moments,
            folds=options.folds,
            second_moments=options.second_moments,
        )
    if options.int8:
        sinks += [Int8Sink(sites=(site,)) for site in sites]
    if options.log_prob:
        sinks.append(LogProbSink())
    if options.directions is not None:
        directions = tuple(load_directions(options.directions)[0])
        _check_directions(options.directions, directions, model)
        sinks.append(ProjectionSink(directions=directions))
        if options.exemplars is not None:
            sinks.append(ExemplarSink(directions=directions, n=options.exemplars))
    for path in options.probes:
        probe = load_probe(path)
        probe.check(model=model.digest, site=probe.site)
        expand_sites([probe.site], count_layers(model))
        sinks.append(ProbeSink(probe=probe))
    return sinks


def second_moments_room(sinks: Sequence[Sink], model: ModelRef, prompts: PromptSet, store: str) -> int:
    """Bytes that the second moments of units not published yet take before compression; 0 where none are asked for.

    Raises InputError where the disk of `store` has less free.
    """
    asked = [sink for sink in sinks if isinstance(sink, MomentsSink) and sink.second_moments]
    if not asked:
        return 0
    widths = site_widths(model, [sink.site for sink in asked])
    needed = sum(
        second_moments_bytes(width=widths[sink.site], values=len(sink.values), folds=sink.folds)
        * _units_missing(sink, model, prompts, store)
        for sink in asked
    )
    free = free_bytes(store)
    if free is not None and needed > free:
        raise InputError(
            f"the second moments take {needed / 1e9:,.1f} GB ({len(asked)} sites of this model, "
            f"{len(asked[0].values)} values by {asked[0].folds} folds in each unit of prompts) and the disk of {store} "
            f"has {free / 1e9:,.1f} GB free: ask for fewer sites or --folds 1, or leave --second-moments out"
        )
    return needed


def free_bytes(store: str) -> int | None:
    """Free on the disk where the store is or would be; None for an object store."""
    if "://" in store:
        return None
    path = Path(store).expanduser().absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def _units_missing(sink: MomentsSink, model: ModelRef, prompts: PromptSet, store: str) -> int:
    """Units whose second moments are not published yet; all where there is no such store or column."""
    name = list(sink.columns)[-1]
    try:
        published = len(Store.open(store).column(model, name, partial=True).receipts)
    except ThresherError:
        published = 0
    return max(0, len(prompts.units) - published)


def _check_directions(path: str, directions: Sequence[Direction], model: ModelRef) -> None:
    """Raises InputError for a direction that does not fit the model, before anything is written."""
    if not directions:
        raise InputError(f"{path} holds no direction: nothing to project on")
    expand_sites([direction.site for direction in directions], count_layers(model))
    widths = site_widths(model, [direction.site for direction in directions])
    for direction in directions:
        # How wide a module's activations are is known for certain only once they are there.
        width = widths[direction.site]
        if direction.vector.shape != (width,) and not direction.site.startswith("module:"):
            raise InputError(
                f"direction {direction.name!r} of {path} has {direction.vector.size} numbers and this model's "
                f"activations at {direction.site} have {width}: it was made for another model or site"
            )
