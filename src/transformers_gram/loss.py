"""
The contrastive loss: embeddings in, loss out. Nothing here knows of a model.

    loss = (CE(-V / t, targets) + CE(-V^T / t, targets)) / 2

with `V` the measure of every anchor with every candidate: the GRAM contrastive loss of arXiv 2412.11959.
"""

from typing import Literal, get_args

import torch
import torch.distributed as dist

from .volume import MEASURES


Gather = Literal["full", "detach", "none"]

MIN_TEMPERATURE = 1e-3


class _GatherWithGradient(torch.autograd.Function):
    """
    Joins the rows of all processes; the gradient of a row is the sum of what every process asks of it.

    `torch.distributed.nn.functional.all_gather` does the same and is deprecated.
    """

    @staticmethod
    def forward(ctx, tensor):
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _gather_rows(tensor: torch.Tensor, gather: Gather) -> torch.Tensor:
    """[B, ...] of this process -> [world_size * B, ...] of all, in the order of the ranks. All must hold B rows."""
    if gather == "detach":
        tensor = tensor.detach()
    if gather == "none" or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    if tensor.dtype == torch.bool:
        return _GatherWithGradient.apply(tensor.byte()).bool()
    return _GatherWithGradient.apply(tensor)


def _cross_entropy(logits, targets, rows, columns, label_smoothing):
    """
    Sum over the rows that are there, with the label smoothing spread over the columns that are there.

    `F.cross_entropy` gives infinity for excluded columns as soon as the labels are smoothed.
    """
    log_probs = logits.masked_fill(~columns, float("-inf")).log_softmax(dim=1).masked_fill(~columns, 0.0)
    smooth = log_probs.sum(dim=1) / columns.sum()
    per_row = -(1 - label_smoothing) * log_probs.gather(1, targets[:, None])[:, 0] - label_smoothing * smooth
    return per_row.masked_fill(~rows, 0.0).sum()


def _one_term(measure, anchor, others, temperature, mask, label_smoothing, gather):
    if mask is not None:
        # NaN times zero is NaN: what stands in a row that counts nowhere must not reach the others.
        anchor = anchor.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
    all_anchors = _gather_rows(anchor, gather)
    all_others = [_gather_rows(other, gather) for other in others]
    all_masks = None if mask is None else _gather_rows(mask, gather)

    batch_size, total = anchor.shape[0], all_anchors.shape[0]
    first = dist.get_rank() * batch_size if total > batch_size else 0
    targets = torch.arange(first, first + batch_size, device=anchor.device)
    there = torch.ones(total, dtype=torch.bool, device=anchor.device) if mask is None else all_masks.any(dim=1)

    to_candidates = -measure(anchor, *all_others, mask=all_masks) / temperature
    if total == batch_size and gather != "detach":
        to_anchors = to_candidates.T
    else:
        to_anchors = -measure(all_anchors, *others, mask=mask).T / temperature
    loss = sum(
        _cross_entropy(logits, targets, there[targets], there, label_smoothing)
        for logits in (to_candidates, to_anchors)
    )
    # Divided by the mean number of rows per process: the processes' mean is then the loss of the joined batch.
    return loss / 2 * (total / batch_size) / there.sum().clamp(min=1)


def contrastive_loss(
    anchor: torch.Tensor,
    others: list[torch.Tensor],
    temperature: torch.Tensor | float = 0.07,
    measure: str = "volume",
    label_smoothing: float = 0.1,
    mask: torch.Tensor | None = None,
    gather: Gather = "full",
) -> torch.Tensor:
    """
    InfoNCE in both directions over a measure of [`MEASURES`], anchor i belonging to candidate i.

    In a distributed run every process scores its own anchors against the candidates of all, and its own candidates
    against the anchors of all. The mean of the processes' losses, and of their gradients (what DDP computes), are
    those of one process on the joined batch. All processes must pass the same number of rows.

    Args:
        anchor (`torch.Tensor`): `[B, d]`, unit vectors.
        others (`list[torch.Tensor]`): k >= 1 tensors `[B, d]`, one per other modality.
        temperature (`torch.Tensor` or `float`): divides the measure; usually a learned scalar. A tensor is used as at
            least 0.001.
        measure (`str`): `"volume"` scores all modalities jointly, in one term. `"cosine"` is the mean of one term per
            anchor-modality pair, as ImageBind and VAST train.
        label_smoothing (`float`): 0.1 in the paper.
        mask (`torch.BoolTensor`, *optional*): `[B, k]`, False where a row lacks a modality. Such a vector counts
            nowhere; a row without any of a term's modalities is neither target nor negative in it.
        gather (`str`): `"full"` joins the processes' embeddings with gradient; `"detach"` without, also when there is
            one process only (what the reference implementation does: each direction then trains one side);
            `"none"` keeps to the local batch.

    Returns:
        `torch.Tensor`: scalar, float32 (float64 for float64 input).

    Raises:
        ValueError: for an unknown `measure` or `gather`, shapes that do not fit, a `temperature` that is not positive,
            or a `label_smoothing` outside of [0, 1].
    """
    if gather not in get_args(Gather):
        raise ValueError(f"`gather` must be one of {get_args(Gather)}; got {gather!r}.")
    if measure not in MEASURES:
        raise ValueError(f"Unknown measure {measure!r}; choose one of {sorted(MEASURES)}.")
    if not others or any(other.shape != anchor.shape for other in others):
        shapes = [list(other.shape) for other in others]
        raise ValueError(f"At least one modality of the anchor's shape {list(anchor.shape)} is needed; got {shapes}.")
    if mask is not None and mask.shape != (len(anchor), len(others)):
        raise ValueError(f"`mask` must be [B, k] = {[len(anchor), len(others)]}; got {list(mask.shape)}.")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must lie in [0, 1]; got {label_smoothing}.")
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.clamp(min=MIN_TEMPERATURE)
    elif temperature <= 0:
        raise ValueError(f"`temperature` must be positive; got {temperature}.")
    mask = None if mask is None else mask.bool()
    if measure == "cosine":
        terms = [([other], None if mask is None else mask[:, i : i + 1]) for i, other in enumerate(others)]
    else:
        terms = [(others, mask)]
    losses = [
        _one_term(MEASURES[measure], anchor, group, temperature, group_mask, label_smoothing, gather)
        for group, group_mask in terms
    ]
    return torch.stack(losses).mean()
