"""
The measures: how closely an anchor and the other modalities of a candidate agree.

Every measure is a function `measure(anchor, *others, mask=None) -> [N, M]` that scores all N anchors against all M
candidates; smaller is closer. `MEASURES` lists them by name.

The volume (the Gramian Representation Alignment Measure of arXiv 2412.11959) is never computed as a determinant per
pair. With `D` the k vectors of a candidate and `Q` an orthonormal basis of their span, the Schur complement gives the
same number as

    volume(a, D)^2 = det G(a, D) = det G(D) * (|a|^2 - |Q a|^2)

so that `Q` and `det G(D)` are worked out once per candidate, and all pairs cost k matrix products.
"""

from typing import NamedTuple

import torch


class Span(NamedTuple):
    """What [`volume`] needs to know of M candidates; see [`factorize`]."""

    basis: torch.Tensor
    """`[M, k, d]`: orthonormal rows that span a candidate's vectors. Rows of missing or dependent vectors are zero."""
    height: torch.Tensor
    """`[M]`: sqrt(det G(D)), the volume of the candidate's own vectors."""


def _promote(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Products of unit vectors outside of autocast: 1 - cos^2 in half precision is made of rounding errors."""
    with torch.autocast(device_type=left.device.type, enabled=False):
        return left @ right.mT


def _unit(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and lengths; a zero vector has no direction and stays zero, with gradient zero."""
    scale = vectors.detach().abs().amax(dim=-1, keepdim=True)
    zero = scale == 0
    # Scaled first: the squares of very long and very short vectors are not representable.
    scaled = vectors / torch.where(zero, 1.0, scale)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    directions = torch.where(zero, 0.0, scaled / torch.where(zero, 1.0, norm))
    return directions, (norm * scale).squeeze(-1)


def _sqrt(squared: torch.Tensor) -> torch.Tensor:
    """sqrt with a finite slope: below the rounding error of `1 - cos^2` it goes on as a straight line to 0."""
    squared = squared.clamp(min=0)
    return squared / squared.clamp(min=torch.finfo(squared.dtype).eps).sqrt()


def _check_anchor(anchor: torch.Tensor, dim: int):
    if anchor.dim() != 2 or anchor.shape[1] != dim:
        raise ValueError(f"The anchor must be [N, {dim}], as wide as the candidates; got {list(anchor.shape)}.")


def _stack(others: tuple[torch.Tensor, ...], mask: torch.Tensor | None) -> torch.Tensor:
    if not others:
        raise ValueError("A candidate needs at least one modality besides the anchor; got none.")
    shapes = [tuple(other.shape) for other in others]
    if others[0].dim() != 2 or len(set(shapes)) > 1:
        raise ValueError(f"All modalities of the candidates must have one shape [M, d]; got {shapes}.")
    vectors = _promote(torch.stack(others, dim=1))
    if mask is not None:
        if mask.shape != vectors.shape[:2]:
            raise ValueError(
                f"`mask` must be [M, k] = {list(vectors.shape[:2])}, one column per modality; got {list(mask.shape)}."
            )
        vectors = torch.where(mask.bool().unsqueeze(-1), vectors, 0.0)
    return vectors


def factorize(*others: torch.Tensor, mask: torch.Tensor | None = None) -> Span:
    """
    Orthonormal basis and own volume of M candidates, by Gram-Schmidt over their k vectors.

    Args:
        others (`torch.Tensor`): k tensors `[M, d]`, one per modality besides the anchor, of any length and any
            floating point dtype. The order does not matter for the volume.
        mask (`torch.BoolTensor`, *optional*): `[M, k]`, False where a candidate lacks the modality. A missing vector
            takes part neither in the basis nor in the height, whatever stands in its place.

    Returns:
        [`Span`]: `basis` `[M, k, d]` and `height` `[M]`, in float32 (float64 for float64 input). They can be stored
        with the candidates, e.g. as a search index.

    Raises:
        ValueError: if there is no modality, or shapes differ, or `mask` is not `[M, k]`.
    """
    vectors = _stack(others, mask)
    basis, height = [], torch.ones_like(vectors[:, 0, 0])
    directions, lengths = _unit(vectors)
    for index in range(vectors.shape[1]):
        rest = directions[:, index]
        # Twice: after the first pass, what is left of a nearly dependent vector is not yet orthogonal to the others.
        for _ in range(2):
            for row in basis:
                rest = rest - (rest * row).sum(-1, keepdim=True) * row
        row, distance = _unit(rest)
        # What is left of a dependent vector is rounding error and points anywhere: it must not widen the span.
        basis.append(torch.where(distance.unsqueeze(-1) > 4 * torch.finfo(row.dtype).eps, row, 0.0))
        factor = lengths[:, index] * distance
        if mask is not None:
            factor = torch.where(mask[:, index].bool(), factor, 1.0)
        height = height * factor
    return Span(torch.stack(basis, dim=1), height)


def distance_to_span(anchor: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """
    Distance `[N, M]` of each anchor `[N, d]` to the span of each candidate (`basis` `[M, k, d]`): the factor
    sqrt(|a|^2 - |Q a|^2) of the volume that depends on the anchor. For unit anchors it lies in [0, 1].
    """
    _check_anchor(anchor, basis.shape[-1])
    directions, lengths = _unit(_promote(anchor))
    inside = 0.0
    for row in basis.unbind(dim=1):
        inside = inside + _matmul(directions, row).square()
    return lengths.unsqueeze(-1) * _sqrt(1 - inside)


def volume(anchor: torch.Tensor, *others: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Volume of the parallelotope of every anchor with every candidate, sqrt(det Gram): the measure of the paper.

    0 where the vectors are linearly dependent (perfect agreement), 1 where unit vectors are orthogonal. With one
    other modality it is the sine of the angle. Signs do not count: `a` and `-a` score alike. Gradients are finite,
    also for duplicates, zero vectors, and anchors inside a candidate's span.

    Args:
        anchor (`torch.Tensor`): `[N, d]`.
        others (`torch.Tensor`): k >= 1 tensors `[M, d]`, the candidate's modalities, row m belonging together.
        mask (`torch.BoolTensor`, *optional*): `[M, k]`, False where candidate m lacks modality k; the volume is then
            that of what is there. Volumes over different numbers of vectors are not comparable as they stand.

    Returns:
        `torch.Tensor`: `[N, M]`, float32 (float64 for float64 input). Of unit vectors, values below about 1.5e-3 (1e-7
        in float64) are rounding error.

    Raises:
        ValueError: see [`factorize`]; and if the anchor is not `[N, d]`.
    """
    span = factorize(*others, mask=mask)
    return distance_to_span(anchor, span.basis) * span.height


def cosine(anchor: torch.Tensor, *others: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    1 - mean cosine of the anchor with each modality of the candidate: the pairwise baseline (ImageBind, VAST).

    Same arguments, shapes and errors as [`volume`]; the values lie in [0, 2]. The mean goes over the modalities that
    `mask` says are there.
    """
    vectors, _ = _unit(_stack(others, mask))
    _check_anchor(anchor, vectors.shape[-1])
    count = vectors.shape[1] if mask is None else mask.sum(-1, keepdim=True).clamp(min=1)
    directions, _ = _unit(_promote(anchor))
    return 1 - _matmul(directions, vectors.sum(1) / count)


def matched_volume(*embeds: torch.Tensor) -> torch.Tensor:
    """
    Volume `[N]` of N matched tuples, given as n >= 2 tensors `[N, d]`: the diagonal of [`volume`] without the rest.

    1 - its mean is the alignment metric of the paper.
    """
    return factorize(*embeds).height


MEASURES = {"volume": volume, "cosine": cosine}
