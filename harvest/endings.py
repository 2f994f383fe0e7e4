"""Many prompts that begin alike, run for what follows their common beginning: the beginning is run once.

For searches, which try thousands of endings on one prompt and keep none of the activations. What is kept of prompts
goes through `harvest`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harvest.batching import plan_endings
from harvest.encoding import EncodedPrompt
from harvest.loading import LoadedModel
from harvest.prefixes import short_context
from harvest.reader import FINAL, Prefix, Reader
from harvest.ways import ways_of
from store import SinkBatch

TOKEN_BUDGET = 4096
FEW = 2  # tokens of endings that are run padded


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Some of the prompts, with the activations of their tokens behind the common beginning.

    rows   places of the prompts in what was asked for, in the order in which the batch has them
    batch  as a sink gets it: `prompt` is the place, rows of one prompt are consecutive and in order of position
    next   gives float32 [rows, vocabulary], the log-probabilities of what follows some of `rows`, by their index here;
           only of `Endings` that were made with `logits`
    """

    rows: list[int]
    batch: SinkBatch
    next: Callable[[slice], torch.Tensor]


class Endings:
    """A model's activations at `sites`, and with `logits` what it would say next, for prompts that begin alike.

    Raises InputError as `Reader` does, and with `logits` for a model whose head thresher does not know.
    """

    def __init__(self, loaded: LoadedModel, sites: Sequence[str], *, logits: bool = False) -> None:
        self.ways = ways_of(loaded)
        self.reader = Reader(loaded, sites, logits=logits)
        self.logits = logits

    @torch.inference_mode()
    def run(self, prompts: Sequence[EncodedPrompt], *, shared: int) -> Iterator[Ended]:
        """`shared` is the number of tokens that all prompts begin with; each has more. Batches come longest first."""
        limit = short_context(self.reader.loaded.decoder.config)
        long = [limit is not None and len(prompt) + self.logits > limit for prompt in prompts]
        for chosen in (False, True):
            rows = [row for row, beyond in enumerate(long) if beyond is chosen]
            # A prompt beyond a LongRoPE model's original context has other positions from its first token on.
            yield from self._run(prompts, rows, shared, share=not any(long))

    def _run(self, prompts: Sequence[EncodedPrompt], rows: list[int], shared: int, *, share: bool) -> Iterator[Ended]:
        prefix = None
        if shared and share and self.ways.share and rows:
            prefix = self.reader.read_prefix(prompts[rows[0]].ids[:shared])
        cut = prefix.length if prefix else 0
        lengths = [len(prompts[row]) - cut + self.logits for row in rows]
        # A packed prompt attends in a slot of several tokens, which single tokens would leave empty.
        pack = self.ways.pack and max(lengths, default=0) > FEW
        for places in plan_endings(lengths, TOKEN_BUDGET, shared=cut, pack=pack):
            here = [rows[place] for place in places]
            yield self._ended(here, [prompts[row] for row in here], prefix, shared, pack)

    def _ended(
        self, rows: list[int], chosen: list[EncodedPrompt], prefix: Prefix | None, shared: int, pack: bool
    ) -> Ended:
        # The final state is read for the token that it predicts: behind a prompt one more token stands for that.
        one = np.zeros(int(self.logits), np.int32)
        ids = [np.concatenate([prompt.ids, one]) for prompt in chosen]
        keep = [np.arange(shared, len(tokens)) for tokens in ids]
        found = self.reader.read(ids, keep, prefix=prefix, packed=pack)
        final = found.pop(FINAL, None)
        counts = np.array([len(places) for places in keep])
        ends = np.cumsum(counts) - 1
        own = np.ones(int(counts.sum()), bool)
        if self.logits:
            own[ends] = False
            found = {site: values[torch.from_numpy(own).to(values.device)] for site, values in found.items()}
        places = [np.arange(shared, len(prompt)) for prompt in chosen]
        head = self.reader.head

        def following(part: slice) -> torch.Tensor:
            assert final is not None, "made without logits"
            assert head is not None
            with torch.inference_mode():
                return torch.log_softmax(head.logits(final[torch.from_numpy(ends[part]).to(final.device)]), -1)

        batch = SinkBatch(
            activations=found,
            prompt=np.repeat(np.array(rows, np.int32), [len(part) for part in places]),
            position=np.concatenate(places).astype(np.int32),
            token_id=np.concatenate([prompt.ids[shared:] for prompt in chosen]),
            role=np.concatenate([prompt.role[shared:] for prompt in chosen]),
        )
        return Ended(rows=rows, batch=batch, next=following)
