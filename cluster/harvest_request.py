"""What the options of `thresher harvest` ask for, made the same way for the harvest and for its plan."""

from dataclasses import dataclass

from cluster.console import read_prompts
from cluster.harvest_options import HarvestOptions
from cluster.sinks import SinkOptions, build_sinks
from harvest import NumericSettings
from harvest.plan import job_of
from harvest.settings import machine_threads
from harvest.worker import Job
from store import CaptureSpec, InputError, ModelRef, PromptSet, Sink, Store
from store.capture_spec import check_tokens


@dataclass(frozen=True, kw_only=True)
class HarvestRequest:
    """A model, prompts and what is to be kept of them.

    spec  what is stored of activations themselves, None with --no-raw
    """

    model: ModelRef
    prompts: PromptSet
    spec: CaptureSpec | None
    sinks: tuple[Sink, ...]
    tokens: str
    settings: NumericSettings
    truncate: bool

    def job(self, store: Store) -> Job:
        """What a worker would be asked for over `store`. Raises InputError for sites that the model does not have."""
        return job_of(
            self.model,
            store,
            self.spec,
            sinks=self.sinks,
            tokens=self.tokens,
            settings=self.settings,
            truncate=self.truncate,
        )

    @staticmethod
    def of(options: HarvestOptions) -> "HarvestRequest":
        """Reads the prompts and hashes the model. Raises InputError for what is missing or does not go together."""
        spec = _raw_spec(options)
        wanted = SinkOptions(
            sites=options.sites,
            moments=options.moments,
            folds=options.folds,
            second_moments=options.second_moments,
            directions=options.directions,
            exemplars=options.exemplars,
            probes=tuple(options.probes or ()),
            log_prob=options.log_prob,
            int8=options.int8,
        )
        prompts = read_prompts(
            options.prompts,
            text=options.text_column,
            messages=options.messages_column,
            label=options.label_column,
            group=options.group_column,
            response=options.response_column,
        )
        model = ModelRef(
            options.model, revision=options.revision, adapter=options.adapter, dtype=options.dtype
        ).resolve()
        settings = NumericSettings(
            threads=options.threads or machine_threads(),
            share_prefixes=options.share_prefixes,
            pack=options.pack,
            quantization=options.quantization,
        )
        sinks = build_sinks(wanted, model, prompts)
        if spec is None and not sinks:
            raise InputError(
                "--no-raw leaves nothing to store: add --moments, --directions, --probe, --log-prob or --int8"
            )
        return HarvestRequest(
            model=model,
            prompts=prompts,
            spec=spec,
            sinks=tuple(sinks),
            tokens=options.tokens,
            settings=settings,
            truncate=options.truncate,
        )


def _raw_spec(options: HarvestOptions) -> CaptureSpec | None:
    """What is stored of activations themselves; None with --no-raw."""
    if options.raw:
        if options.sites is None:
            raise InputError("no site is named: give --sites resid_post.15, or --no-raw to store no activations")
        return CaptureSpec(sites=options.sites, tokens=options.tokens, reduce=options.reduce)
    check_tokens(options.tokens)
    if options.reduce != "none":
        raise InputError("--reduce is of raw activations, and --no-raw stores none: leave one of the two out")
    return None
