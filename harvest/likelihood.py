"""How probable a model finds given tokens, with its sites written to or not; and how large its activations are."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from harvest.batching import plan_batches
from harvest.condition import Condition, padded_pools
from harvest.encoding import EncodedPrompt
from harvest.head import Head
from harvest.inputs import inputs_of
from harvest.interventions import Intervention, intervene
from harvest.layout import Layout
from harvest.loading import LoadedModel
from harvest.reader import Reader
from harvest.token_sinks import LOGITS_AT_ONCE

TOKEN_BUDGET = 8192


def mean_logprobs(
    loaded: LoadedModel,
    prompts: Sequence[EncodedPrompt],
    counted: Sequence[np.ndarray],
    *,
    interventions: Sequence[Intervention] = (),
    once: Condition | None = None,
    token_budget: int = TOKEN_BUDGET,
    progress: Callable[[int], None] = lambda prompts: None,
) -> np.ndarray:
    """float64 [n]: of each prompt the mean natural log-probability of its counted tokens, given those before them.

    counted  bool [tokens] of each prompt; its first token never counts, as nothing predicts it. NaN where none is left
    The interventions act as in `generate`. Raises InputError for a model whose logits cannot be made from its last
    hidden state (`Head.of`), and as `intervene` does.
    """
    head = Head.of(loaded)
    means = np.full(len(prompts), np.nan)
    with intervene(loaded, interventions, once=once) as gate:
        for rows in plan_batches([len(prompt) for prompt in prompts], token_budget):
            batch = [prompts[row] for row in rows]
            layout = Layout(lengths=tuple(map(len, batch)), packed=False)
            ids = torch.from_numpy(layout.fill([prompt.ids for prompt in batch])).to(loaded.device)
            pools = padded_pools(once, batch, width=layout.shape[1], left=False).to(loaded.device)
            hidden = gate.prompts(pools, partial(_hidden, loaded, ids, layout))
            for place, row in enumerate(rows):
                at = np.flatnonzero(counted[row])
                at = at[at > 0]
                if len(at):
                    means[row] = _logprobs(head, hidden[place], batch[place].ids, at).mean()
            progress(len(rows))
    return means


@torch.inference_mode()
def _hidden(loaded: LoadedModel, ids: torch.Tensor, layout: Layout) -> Any:
    """[rows, tokens, width]: the last hidden state."""
    backbone = loaded.decoder.backbone
    return backbone(**inputs_of(backbone, ids, layout)).last_hidden_state


@torch.inference_mode()
def _logprobs(head: Head, hidden: torch.Tensor, ids: np.ndarray, at: np.ndarray) -> np.ndarray:
    """float64 [len(at)]: log-probability of the tokens at places `at`, few rows of logits at a time."""
    found = []
    start, step = 0, 1
    while start < len(at):
        part = torch.from_numpy(at[start : start + step]).to(hidden.device)
        logs = torch.log_softmax(head.logits(hidden[part - 1]), -1)
        tokens = torch.from_numpy(ids[at[start : start + step]].astype(np.int64)).to(logs.device)
        found.append(logs.gather(-1, tokens[:, None])[:, 0].double().cpu().numpy())
        start, step = start + step, max(1, LOGITS_AT_ONCE // logs.shape[-1])
    return np.concatenate(found)


def mean_norms(
    loaded: LoadedModel, prompts: Sequence[EncodedPrompt], sites: Sequence[str], *, token_budget: int = TOKEN_BUDGET
) -> dict[str, float]:
    """Site -> mean Euclidean norm of its activations over all tokens of the prompts.

    A prompt's first token does not count where it has others: it is an attention sink, often a hundred times as large.
    Raises InputError as `Reader` does.
    """
    reader = Reader(loaded, sites)
    sums, tokens = dict.fromkeys(sites, 0.0), 0
    for rows in plan_batches([len(prompt) for prompt in prompts], token_budget):
        keep = [np.arange(min(1, len(prompts[row]) - 1), len(prompts[row])) for row in rows]
        tokens += sum(map(len, keep))
        for site, values in reader.read([prompts[row].ids for row in rows], keep).items():
            norms = torch.linalg.vector_norm(values.flatten(1).float(), dim=1)
            sums[site] += float(norms.sum(dtype=torch.float64))
    return {site: total / tokens for site, total in sums.items()}
