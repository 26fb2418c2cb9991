"""Retrieval metrics from embeddings: ranks in chunks, several captions per clip, volume beside cosine."""

from collections.abc import Callable
from itertools import combinations

import torch

from .volume import MEASURES, cosine, factorize, matched_volume


RECALL_AT = (1, 5, 10)

DEGENERATE_HEIGHT = 1e-3


def retrieval_ranks(
    measure: Callable[..., torch.Tensor],
    anchor: torch.Tensor,
    others: list[torch.Tensor],
    anchor_ids: torch.Tensor,
    candidate_ids: torch.Tensor,
    chunk_size: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rank of the best match of every query, in both directions, never holding more than `chunk_size` rows of scores.

    Args:
        measure: a function of [`MEASURES`], smaller is closer.
        anchor (`torch.Tensor`): `[N, d]`, e.g. captions. others: k tensors `[M, d]`, the candidates' modalities.
        anchor_ids (`torch.LongTensor` `[N]`), candidate_ids (`[M]`): equal where anchor and candidate belong together;
            several captions may have the id of one clip, whose best-ranked one then counts.

    Returns:
        Ranks `[N]` of candidates for anchors, and `[M]` of anchors for candidates; 1 is best. Items that tie with the
        match, and NaN, count as ahead of it, so that a collapsed or diverged model does not look perfect.

    Raises:
        ValueError: if an id has no counterpart.
    """
    for ids, known, what in ((anchor_ids, candidate_ids, "anchor"), (candidate_ids, anchor_ids, "candidate")):
        if alone := ids[~torch.isin(ids, known)].tolist():
            raise ValueError(f"The {what} ids {alone[:10]} have no counterpart.")

    def ranks(distances, is_match):
        best = distances.masked_fill(~is_match, float("inf")).amin(dim=1, keepdim=True)
        return 1 + (~(distances > best) & ~is_match).sum(dim=1)

    forward = [
        ranks(measure(part, *others), part_ids[:, None] == candidate_ids)
        for part, part_ids in zip(anchor.split(chunk_size), anchor_ids.split(chunk_size), strict=True)
    ]
    backward = [
        ranks(measure(anchor, *parts).T, part_ids[:, None] == anchor_ids)
        for *parts, part_ids in zip(
            *(other.split(chunk_size) for other in others), candidate_ids.split(chunk_size), strict=True
        )
    ]
    return torch.cat(forward), torch.cat(backward)


def summarize_ranks(ranks: torch.Tensor) -> dict[str, float]:
    """Recall (percent) at 1, 5, 10; median and mean rank."""
    summary = {f"R@{k}": 100 * (ranks <= k).double().mean().item() for k in RECALL_AT}
    return {**summary, "median_rank": ranks.double().quantile(0.5).item(), "mean_rank": ranks.double().mean().item()}


def retrieval_metrics(
    embeds: dict[str, torch.Tensor], anchor: str, anchor_ids: torch.Tensor, candidate_ids: torch.Tensor
) -> dict[str, float]:
    """
    All retrieval metrics of one model, volume beside cosine.

    Args:
        embeds: unit vectors by modality: the anchor's `[N, d]`, all others `[M, d]`.
        anchor: the anchor's name. anchor_ids, candidate_ids: see [`retrieval_ranks`].

    Returns:
        `{score}_{anchor}_to_clip_{metric}` and `{score}_clip_to_{anchor}_{metric}` for the scores `volume` (all
        modalities), `cosine` (mean over the pairs) and `cosine_{modality}` (one pair).
    """
    names = [name for name in embeds if name != anchor]
    others = [embeds[name] for name in names]
    scores = {name: (measure, others) for name, measure in MEASURES.items()}
    if len(names) > 1:
        scores |= {f"cosine_{name}": (cosine, [other]) for name, other in zip(names, others, strict=True)}
    metrics = {}
    for score, (measure, group) in scores.items():
        forward, backward = retrieval_ranks(measure, embeds[anchor], group, anchor_ids, candidate_ids)
        for direction, ranks in ((f"{anchor}_to_clip", forward), (f"clip_to_{anchor}", backward)):
            metrics |= {f"{score}_{direction}_{key}": value for key, value in summarize_ranks(ranks).items()}
    return metrics


def alignment_metrics(matched: dict[str, torch.Tensor], anchor: str) -> dict[str, float]:
    """
    How well matched tuples agree.

    Args:
        matched: unit vectors `[N, d]` by modality, row i of all belonging together.

    Returns:
        `alignment`, 1 - mean volume, the metric that in the paper follows downstream results; the mean cosine of every
        pair of modalities, *with its sign*, which the volume does not see; and `degenerate_rate`, the share of
        candidates whose own vectors (without the anchor) span less than 0.001: they score 0 with any anchor.
    """
    names = [anchor, *(name for name in matched if name != anchor)]
    metrics = {"alignment": 1 - matched_volume(*(matched[name] for name in names)).mean().item()}
    for first, second in combinations(names, 2):
        product = (matched[first].double() * matched[second].double()).sum(-1)
        metrics[f"cosine_of_{first}_and_{second}"] = product.mean().item()
    height = factorize(*(matched[name] for name in names[1:])).height
    metrics["degenerate_rate"] = (height < DEGENERATE_HEIGHT).double().mean().item()
    return metrics
