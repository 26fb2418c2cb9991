import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_gram.volume import cosine, distance_to_span, factorize, matched_volume, volume


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def determinant_volume(anchor, *others):
    """The definition: sqrt(det Gram) of every pair, in float64."""
    result = torch.empty(len(anchor), len(others[0]), dtype=torch.float64)
    for n, a in enumerate(anchor.double()):
        for m in range(len(others[0])):
            vectors = torch.stack([a, *(other[m].double() for other in others)])
            result[n, m] = torch.linalg.det(vectors @ vectors.T).clamp(min=0).sqrt()
    return result


sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(5, 24), st.integers(0, 10**6))


def make(sizes, dtype=torch.float64, scale=1.0):
    n, m, k, d, seed = sizes
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(n, d, generator=generator, dtype=torch.float64)
    others = torch.randn(k, m, d, generator=generator, dtype=torch.float64)
    lengths = torch.rand(k, m, 1, generator=generator, dtype=torch.float64) * 3 * scale + 0.1
    others = torch.nn.functional.normalize(others, dim=-1) * lengths
    return torch.nn.functional.normalize(anchor, dim=-1).to(dtype), tuple(other.to(dtype) for other in others)


@given(sizes)
@settings(deadline=None, max_examples=60)
def test_equals_the_determinant(sizes):
    anchor, others = make(sizes)
    torch.testing.assert_close(volume(anchor, *others), determinant_volume(anchor, *others), rtol=1e-7, atol=1e-7)


@given(sizes)
@settings(deadline=None, max_examples=40)
def test_float32_stays_close(sizes):
    anchor, others = make(sizes, torch.float32, scale=0.3)
    assert volume(anchor, *others).dtype == torch.float32
    torch.testing.assert_close(
        volume(anchor, *others).double(), determinant_volume(anchor, *others), rtol=1e-4, atol=1e-3
    )


def test_bf16_is_accumulated_in_float32():
    anchor, first, second = (unit(6, 64, seed=seed).bfloat16() for seed in range(3))
    result = volume(anchor, first, second)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), determinant_volume(anchor, first, second), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(volume(anchor, first, second), result, rtol=0, atol=0)
        assert cosine(anchor, first).dtype == torch.float32


@given(sizes, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_of_the_modalities_does_not_matter(sizes, random):
    anchor, others = make(sizes)
    shuffled = random.sample(others, len(others))
    torch.testing.assert_close(volume(anchor, *shuffled), volume(anchor, *others), rtol=1e-8, atol=1e-8)


@given(sizes)
@settings(deadline=None, max_examples=40)
def test_rotation_invariance(sizes):
    anchor, others = make(sizes)
    rotation = torch.linalg.qr(unit(anchor.shape[1], anchor.shape[1], seed=sizes[-1]))[0]
    rotated = volume(anchor @ rotation, *(other @ rotation for other in others))
    torch.testing.assert_close(rotated, volume(anchor, *others), rtol=1e-7, atol=1e-7)


@given(sizes, st.floats(0.05, 20), st.floats(0.05, 20))
@settings(deadline=None, max_examples=40)
def test_volume_scales_with_every_length_and_ignores_signs(sizes, a, b):
    anchor, others = make(sizes)
    scaled = volume(a * anchor, -b * others[0], *others[1:])
    torch.testing.assert_close(scaled, a * b * volume(anchor, *others), rtol=1e-7, atol=1e-9)


def test_one_other_modality_gives_the_sine():
    anchor, other = unit(7, 16), unit(5, 16, seed=1)
    torch.testing.assert_close(volume(anchor, other), (anchor @ other.T).arccos().sin(), rtol=1e-10, atol=1e-10)


def test_orthogonal_vectors_have_volume_one():
    axes = torch.eye(4)
    assert volume(axes[:1], axes[1:2], axes[2:3], axes[3:]).item() == pytest.approx(1)


def degenerate(name):
    a, b, c = unit(3, 8, dtype=torch.float32), unit(3, 8, seed=1, dtype=torch.float32), torch.zeros(3, 8)
    inside = torch.nn.functional.normalize(a + 2 * b, dim=-1)
    return {
        "candidate vectors coincide": (a, b, b.clone()),
        "candidate vectors are opposite": (a, b, -b),
        "candidate vectors nearly coincide": (a, b, b + 1e-7),
        "a zero vector": (a, b, c),
        "anchor is zero": (c, a, b),
        "everything is zero": (c, c.clone(), c.clone()),
        "anchor equals a vector": (a, a.clone(), b),
        "anchor inside the span": (inside, a, b),
        "three identical vectors": (a, a.clone(), a.clone()),
        "one candidate": (a[:1], b[:1], unit(1, 8, seed=5, dtype=torch.float32)),
        "more vectors than dimensions": tuple(vectors[:, :2] for vectors in (a, b, unit(3, 8, seed=5).float())),
        "tiny": (a * 1e-20, b * 1e-20, b * 1e-20),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    [
        "candidate vectors coincide",
        "candidate vectors are opposite",
        "candidate vectors nearly coincide",
        "a zero vector",
        "anchor is zero",
        "everything is zero",
        "anchor equals a vector",
        "anchor inside the span",
        "three identical vectors",
        "one candidate",
        "more vectors than dimensions",
        "tiny",
    ],
)
def test_degenerate_inputs_have_finite_values_and_gradients(name, dtype):
    tensors = [tensor.to(dtype).requires_grad_() for tensor in degenerate(name)]
    result = volume(*tensors)
    assert result.isfinite().all() and (result >= 0).all() and (result <= 1.01).all()
    result.sum().backward()
    for tensor in tensors:
        assert tensor.grad.isfinite().all()
        assert tensor.grad.norm() < 20
    if name != "one candidate" and dtype != torch.bfloat16:
        assert result.diagonal().max() < 2e-3
    if name != "tiny":
        pairwise = [tensor.detach().requires_grad_() for tensor in tensors]
        cosine(*pairwise).sum().backward()
        assert all(tensor.grad.norm() < 20 for tensor in pairwise)


def test_very_long_and_very_short_vectors():
    anchor, first, second = (unit(3, 8, seed=seed, dtype=torch.float32) for seed in range(3))
    expected = volume(anchor, first, second)
    long, short = (1e30 * anchor).requires_grad_(), (1e-30 * first).requires_grad_()
    result = volume(long, short, second)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cosine(long, short), cosine(anchor, first), rtol=1e-4, atol=1e-4)
    result.sum().backward()
    assert long.grad.isfinite().all() and short.grad.isfinite().all()


def test_dependent_vectors_do_not_widen_the_span():
    anchor, vector = unit(4, 8), unit(3, 8, seed=1)
    span = factorize(vector, vector.clone())
    assert (span.basis[:, 1] == 0).all() and (span.height < 1e-12).all()
    torch.testing.assert_close(distance_to_span(anchor, span.basis), volume(anchor, vector))


def test_gradcheck():
    tensors = [unit(n, 6, seed=n).requires_grad_() for n in (3, 2)] + [unit(2, 6, seed=9).requires_grad_()]
    mask = torch.tensor([[True, True], [False, True]])
    assert torch.autograd.gradcheck(volume, tensors)
    assert torch.autograd.gradcheck(lambda *t: volume(*t, mask=mask), tensors)
    assert torch.autograd.gradcheck(lambda *t: cosine(*t, mask=mask), tensors)
    assert torch.autograd.gradgradcheck(volume, tensors)


@pytest.mark.parametrize("measure", [volume, cosine])
def test_a_masked_modality_is_left_out_whatever_it_holds(measure):
    anchor, first, second = unit(4, 16), unit(3, 16, seed=1), unit(3, 16, seed=2)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    spoiled = second.clone()
    spoiled[1] = float("nan")
    spoiled.requires_grad_()
    result = measure(anchor, first, spoiled, mask=mask)
    torch.testing.assert_close(result[:, 0], measure(anchor, first, second)[:, 0])
    torch.testing.assert_close(result[:, 1], measure(anchor, first)[:, 1])
    torch.testing.assert_close(result[:, 2], measure(anchor, second)[:, 2])
    result.sum().backward()
    assert (spoiled.grad[1] == 0).all() and spoiled.grad.isfinite().all()


def test_matched_volume_is_the_diagonal():
    embeds = [unit(6, 16, seed=seed) for seed in range(4)]
    torch.testing.assert_close(matched_volume(*embeds), volume(*embeds).diagonal())


def test_cosine():
    anchor, first, second = unit(4, 16), unit(3, 16, seed=1), unit(3, 16, seed=2)
    expected = 1 - (anchor @ first.T + anchor @ second.T) / 2
    torch.testing.assert_close(cosine(3 * anchor, first, 2 * second), expected)


def test_errors_name_the_shapes():
    anchor = unit(4, 16)
    with pytest.raises(ValueError, match="at least one modality"):
        volume(anchor)
    for measure in (volume, cosine):
        with pytest.raises(ValueError, match=r"\[N, 8\].*got \[4, 16\]"):
            measure(anchor, unit(3, 8))
    with pytest.raises(ValueError, match=r"\(3, 16\), \(2, 16\)"):
        volume(anchor, unit(3, 16), unit(2, 16))
    with pytest.raises(ValueError, match=r"\[3, 2\].*got \[3\]"):
        volume(anchor, unit(3, 16), unit(3, 16), mask=torch.ones(3))


def test_no_pairwise_matrix_of_vectors_is_built():
    """2,000 x 2,000 pairs of 4 vectors take k matrix products, not four million 4 x 4 determinants."""
    embeds = [unit(2000, 32, seed=seed, dtype=torch.float32) for seed in range(4)]
    with torch.profiler.profile(profile_memory=True) as profile:
        result = volume(*embeds)
    assert result.shape == (2000, 2000)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    pair_matrix = math.prod(result.shape) * 4
    assert pair_matrix <= largest <= 2 * pair_matrix
