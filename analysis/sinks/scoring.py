"""Scores of activations along directions, and the most extreme of them in every prompt.

Leading tokens that all calibration prompts share (a chat template's opening) are left out as long as a prompt
begins with them: their activations are the same in every prompt, and would only hide how low a prompt's own scores
are. The first token is left out too: it is an attention sink whose massive activations say nothing of the text. A
prompt's last token is always scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from store.digest import digest_array, digest_json, sha256
from store.direction import Direction
from store.errors import InputError
from store.sink import ROLES, SinkBatch, scored_from

SCORINGS = ("cosine", "centred", "projection", "mahalanobis")
ALL = ("all",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What scores at one site are measured from; see `analysis.monitors.reference`.

    origin     float64: the mean activation [width] for `centred`, the mean projection on each of the site's k
               directions [k] for `mahalanobis`
    whitening  float64 [k, k], W with S⁻¹ = W Wᵀ, for `mahalanobis`; None for `centred`
    """

    origin: np.ndarray
    whitening: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """How activations become scores. One channel is one number a token: a direction's, or a site's for `mahalanobis`.

    directions  at any sites. A vector that is not of length 1 stands for the direction it points to
    kind        `cosine` of the activation x with the direction d; `centred`, the cosine of x − μ with d;
                `projection` of x on d; `mahalanobis`, (p − m)ᵀ S⁻¹ (p − m) of the projections p of x on all directions
                of a site
    roles       `("all",)`: one pool of tokens; or names of ROLES, whose tokens have extremes apart from each other
    prefix      token ids that are not scored where a prompt begins with them; None: every token is scored, the first
                one too
    reference   site -> what `centred` and `mahalanobis` are measured from

    Raises InputError for an unknown kind or role, and for a kind without its reference.
    """

    directions: tuple[Direction, ...]
    kind: str = "cosine"
    roles: tuple[str, ...] = ALL
    prefix: tuple[int, ...] | None = ()
    reference: Mapping[str, Reference] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_scoring(self.kind, self.roles)
        lacking = [site for site in self.sites if site not in self.reference]
        if needs_reference(self.kind) and lacking:
            raise InputError(
                f"scoring {self.kind} is measured from clean tokens and {lacking[0]} has no moments of them: fit a "
                "monitor, or use cosine or projection"
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """Each once, in order of the directions."""
        return tuple(dict.fromkeys(direction.site for direction in self.directions))

    @property
    def channels(self) -> tuple[tuple[str, str], ...]:
        """(name, site) of each of the c numbers of a token, in their order."""
        if self.kind == "mahalanobis":
            return tuple((f"subspace of {site}", site) for site in self.sites)
        return tuple((direction.name, direction.site) for direction in self.directions)

    @property
    def extremes(self) -> int:
        """Numbers of a prompt that can flag it: two a channel and role, or one where only large scores are extreme."""
        return len(self.channels) * len(self.roles) * (1 if self.kind == "mahalanobis" else 2)

    def only(self, channels: Sequence[int]) -> "Scorer":
        """The scorer of some channels, in the order given."""
        if self.kind != "mahalanobis":
            return replace(self, directions=tuple(self.directions[place] for place in channels))
        sites = [self.sites[place] for place in channels]
        return replace(self, directions=tuple(d for site in sites for d in self.directions if d.site == site))

    def settings(self) -> dict[str, Any]:
        """JSON of all that decides the numbers."""
        told: dict[str, Any] = {
            "scoring": self.kind,
            "roles": list(self.roles),
            "prefix": None if self.prefix is None else list(self.prefix),
            "directions": [[direction.site, vector_digest(direction)] for direction in self.directions],
        }
        if self.reference:
            told["reference"] = {
                site: [digest_array(array) for array in (found.origin, found.whitening) if array is not None]
                for site, found in self.reference.items()
            }
        return told

    def scores(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """float32 [rows, c]. Rows of several dimensions (heads) are flattened.

        Raises InputError where a direction is not as wide as the activations at its site.
        """
        columns: list[torch.Tensor | None] = [None] * len(self.channels)
        for position, site in enumerate(self.sites):
            places = [place for place, direction in enumerate(self.directions) if direction.site == site]
            found = self._site_scores(site, places, activations[site].flatten(1).float())
            for column, place in enumerate([position] if self.kind == "mahalanobis" else places):
                columns[place] = found[:, column]
        return torch.stack([column for column in columns if column is not None], dim=1)

    def _site_scores(self, site: str, places: list[int], rows: torch.Tensor) -> torch.Tensor:
        vectors = unit_vectors([self.directions[place] for place in places], rows)
        if self.kind == "centred":
            rows = rows - torch.from_numpy(self.reference[site].origin).to(rows)
        scores = rows @ vectors.T
        if self.kind in ("cosine", "centred"):
            return scores / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
        if self.kind == "mahalanobis":
            found = self.reference[site]
            assert found.whitening is not None, "moments of projections come with their covariance"
            whitened = (scores - torch.from_numpy(found.origin).to(rows)) @ torch.from_numpy(found.whitening).to(rows)
            return whitened.square().sum(1, keepdim=True)
        return scores


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptExtremes:
    """Of n prompts, c channels and r roles the extremes over tokens, [n, c, 2 r]: of role k the largest score at 2 k,
    the largest negated score at 2 k + 1.

    prompt              int32 [n], row of the unit
    value               float32; NaN where a token's score is NaN; −inf where the prompt has no token of the
                        role, and for the negated distances of `mahalanobis`, which are no extremes
    position, token_id  int32, where it is; −1 where the value is −inf
    """

    prompt: np.ndarray
    value: np.ndarray
    position: np.ndarray
    token_id: np.ndarray


def needs_reference(kind: str) -> bool:
    """Whether a kind of scoring is measured from the moments of clean tokens."""
    return kind in ("centred", "mahalanobis")


def check_scoring(kind: str, roles: Sequence[str]) -> None:
    """Raises InputError for an unknown kind of scoring or role of tokens."""
    if kind not in SCORINGS:
        raise InputError(f"unknown scoring {kind!r}: use {', '.join(SCORINGS)}")
    unknown = [role for role in roles if role not in ROLES]
    if tuple(roles) != ALL and (unknown or not roles or len(set(roles)) < len(roles)):
        raise InputError(f"cannot score tokens of roles {','.join(roles)!r}: use all, or some of {', '.join(ROLES)}")


def column_suffix(settings: Mapping[str, Any]) -> str:
    """What the columns of a sink of directions are called behind their kind: `directions-<digest of its settings>`."""
    return f"directions-{digest_json(settings)[:12]}"


def unit_vectors(directions: Sequence[Direction], rows: torch.Tensor) -> torch.Tensor:
    """[k, width], of length 1, beside `rows` [n, width]. Raises InputError for a direction of another width."""
    for direction in directions:
        if direction.vector.shape != (rows.shape[1],):
            raise InputError(
                f"direction {direction.name!r} has {direction.vector.size} numbers and activations at "
                f"{direction.site} have {rows.shape[1]}: it was made for another model or site"
            )
    vectors = torch.from_numpy(np.stack([direction.vector for direction in directions])).to(rows)
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)


def prompt_extremes(batch: SinkBatch, scorer: Scorer) -> PromptExtremes:
    """The extremes of a batch's prompts, each over those of its tokens that are scored."""
    scores = scorer.scores(batch.activations)
    none = torch.full((scores.shape[1],), -torch.inf, device=scores.device)
    nowhere = torch.full((scores.shape[1],), -1, dtype=torch.long, device=scores.device)
    prompts, values, rows = [], [], []
    for prompt, chosen in scored_rows(batch, roles=scorer.roles, prefix=scorer.prefix):
        prompts.append(prompt)
        value, row = [], []
        for of_role in chosen:
            places = torch.from_numpy(of_role).to(scores.device)
            part = scores[places]
            for signed in (part, None if scorer.kind == "mahalanobis" else -part):
                if signed is None or not len(of_role):
                    value.append(none)
                    row.append(nowhere)
                else:
                    most = signed.max(dim=0)
                    value.append(most.values)
                    row.append(places[most.indices])
        values.append(torch.stack(value, dim=1))
        rows.append(torch.stack(row, dim=1))
    empty = torch.zeros((0, scores.shape[1], 2 * len(scorer.roles)))
    # One copy to the host for the whole batch, not one per prompt.
    where = torch.stack(rows).cpu().numpy() if rows else empty.long().numpy()
    return PromptExtremes(
        prompt=np.array(prompts, np.int32),
        value=torch.stack(values).cpu().numpy() if values else empty.numpy(),
        position=np.where(where < 0, -1, batch.position[where]),
        token_id=np.where(where < 0, -1, batch.token_id[where]),
    )


def token_extremes(batch: SinkBatch, scorer: Scorer) -> np.ndarray:
    """float32 [rows, c, 2 r], as in `PromptExtremes.value`, of every row as if it were a prompt of its own."""
    scores = scorer.scores(batch.activations).cpu().numpy()
    found = np.full((*scores.shape, 2 * len(scorer.roles)), -np.inf, np.float32)
    for place, role in enumerate(scorer.roles):
        rows = slice(None) if role == "all" else batch.role == ROLES.index(role)
        found[rows, :, 2 * place] = scores[rows]
        if scorer.kind != "mahalanobis":
            found[rows, :, 2 * place + 1] = -scores[rows]
    return found


def scored_rows(
    batch: SinkBatch, *, roles: Sequence[str], prefix: Sequence[int] | None
) -> list[tuple[int, list[np.ndarray]]]:
    """(prompt, for each role the rows of the batch that are scored, int64) for each prompt of a batch."""
    codes = [None if role == "all" else ROLES.index(role) for role in roles]
    starts = np.flatnonzero(np.diff(batch.prompt, prepend=-1))
    stops = np.append(starts, len(batch.prompt))[1:]
    found = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        first = start + scored_from(batch.token_id[start:stop], batch.position[start:stop], prefix)
        rows = np.arange(first, stop)
        chosen = [rows if code is None else rows[batch.role[first:stop] == code] for code in codes]
        found.append((int(batch.prompt[start]), chosen))
    return found


def vector_digest(direction: Direction) -> str:
    """What stands for a direction's numbers in settings."""
    return sha256(np.ascontiguousarray(direction.vector).tobytes())
