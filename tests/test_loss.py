import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from transformers_gram.loss import MIN_TEMPERATURE, contrastive_loss
from transformers_gram.volume import cosine, volume


def embeds(rows=8, modalities=3, dim=16, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(modalities, rows, dim, generator=generator, dtype=dtype)
    return [vector.clone().requires_grad_() for vector in F.normalize(vectors, dim=-1)]


def plain_loss(distances, temperature, smoothing):
    targets = torch.arange(len(distances))
    both = (-distances / temperature, -distances.T / temperature)
    return sum(F.cross_entropy(logits, targets, label_smoothing=smoothing) for logits in both) / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_volume_loss_is_the_mean_of_both_cross_entropies(smoothing):
    anchor, *others = embeds()
    expected = plain_loss(volume(anchor, *others), 0.07, smoothing)
    torch.testing.assert_close(contrastive_loss(anchor, others, 0.07, label_smoothing=smoothing), expected)


def test_cosine_loss_has_one_term_per_pair():
    anchor, *others = embeds()
    expected = sum(plain_loss(cosine(anchor, other), 0.07, 0.1) for other in others) / len(others)
    torch.testing.assert_close(contrastive_loss(anchor, others, measure="cosine"), expected)


@pytest.mark.parametrize("measure", ["volume", "cosine"])
def test_detach_trains_one_side_per_direction(measure):
    anchor, *others = embeds()
    value = contrastive_loss(anchor, others, measure=measure, gather="detach")
    torch.testing.assert_close(value, contrastive_loss(anchor, others, measure=measure))
    value.backward()
    detached = copy.deepcopy(anchor.grad)

    anchor.grad = None
    targets = torch.arange(len(anchor))
    groups = [others] if measure == "volume" else [[other] for other in others]
    function = {"volume": volume, "cosine": cosine}[measure]
    one_way = [F.cross_entropy(-function(anchor, *g) / 0.07, targets, label_smoothing=0.1) / 2 for g in groups]
    (sum(one_way) / len(groups)).backward()
    torch.testing.assert_close(anchor.grad, detached)


@pytest.mark.parametrize("measure", ["volume", "cosine"])
def test_temperature_gets_a_gradient_and_is_never_zero(measure):
    anchor, *others = embeds()
    temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    contrastive_loss(anchor, others, temperature, measure).backward()
    assert temperature.grad.abs() > 1e-3
    floor = contrastive_loss(anchor, others, torch.tensor(-1.0), measure)
    torch.testing.assert_close(floor, contrastive_loss(anchor, others, MIN_TEMPERATURE, measure))
    assert floor.isfinite()


@pytest.mark.parametrize("measure", ["volume", "cosine"])
def test_rows_without_any_modality_count_nowhere(measure):
    anchor, *others = embeds(rows=6)
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[2] = False
    kept = torch.tensor([0, 1, 3, 4, 5])
    expected = contrastive_loss(anchor[kept], [other[kept] for other in others], measure=measure)
    value = contrastive_loss(anchor, others, measure=measure, mask=mask)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert (anchor.grad[2] == 0).all() and all((other.grad[2] == 0).all() for other in others)
    with torch.no_grad():
        anchor[2] = float("nan")
    torch.testing.assert_close(contrastive_loss(anchor, others, measure=measure, mask=mask), expected)


def test_cosine_leaves_out_only_the_pair_that_is_missing():
    anchor, video, audio = embeds(rows=6)
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[4, 1] = False
    kept = torch.tensor([0, 1, 2, 3, 5])
    expected = contrastive_loss(anchor, [video], measure="cosine")
    expected = (expected + contrastive_loss(anchor[kept], [audio[kept]], measure="cosine")) / 2
    torch.testing.assert_close(contrastive_loss(anchor, [video, audio], measure="cosine", mask=mask), expected)


def test_a_masked_volume_is_that_of_what_is_there():
    anchor, video, audio = embeds(rows=6)
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[4, 1] = False
    distances = volume(anchor, video, audio, mask=mask)
    torch.testing.assert_close(distances[:, 4], volume(anchor, video)[:, 4])
    value = contrastive_loss(anchor, [video, audio], mask=mask)
    torch.testing.assert_close(value, plain_loss(distances, 0.07, 0.1))


def test_errors():
    anchor, *others = embeds()
    with pytest.raises(ValueError, match=r"'area'.*\['cosine', 'volume'\]"):
        contrastive_loss(anchor, others, measure="area")
    with pytest.raises(ValueError, match="'all'"):
        contrastive_loss(anchor, others, gather="all")
    with pytest.raises(ValueError, match=r"\[8, 16\].*\[4, 16\]"):
        contrastive_loss(anchor, [others[0][:4]])
    with pytest.raises(ValueError, match=r"At least one.*got \[\]"):
        contrastive_loss(anchor, [], measure="cosine")
    with pytest.raises(ValueError, match=r"\[8, 1\]; got \[8, 2\]"):
        contrastive_loss(anchor, others[:1], measure="cosine", mask=torch.ones(8, 2))
    with pytest.raises(ValueError, match="label_smoothing"):
        contrastive_loss(anchor, others, label_smoothing=1.5)
    with pytest.raises(ValueError, match="temperature"):
        contrastive_loss(anchor, others, temperature=0.0)


def _worker(rank, world_size, folder, cases):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    results = []
    for measure, gather, with_mask in cases:
        mask = _mask() if with_mask else None
        local = [vector.detach().chunk(world_size)[rank].clone().requires_grad_() for vector in embeds()]
        temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
        own_mask = None if mask is None else mask.chunk(world_size)[rank]
        loss = contrastive_loss(local[0], local[1:], temperature, measure, mask=own_mask, gather=gather)
        (loss / world_size).backward()  # what averaging the gradients over the processes amounts to
        results.append((loss.item(), [vector.grad for vector in local], temperature.grad))
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def _mask():
    mask = torch.ones(8, 2, dtype=torch.bool)
    mask[1, 0] = mask[6, 1] = False
    mask[2] = False
    return mask


CASES = [(m, g, k) for m in ("volume", "cosine") for g in ("full", "detach", "none") for k in (False, True)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(_worker, args=(2, str(folder), CASES), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_equal_one(case, two_processes):
    measure, gather, with_mask = case
    first, second = (results[CASES.index(case)] for results in two_processes)
    joined = embeds()
    temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    mask = _mask() if with_mask else None
    if gather == "none":
        parts = zip(*(vector.chunk(2) for vector in joined), strict=True)
        masks = [None, None] if mask is None else mask.chunk(2)
        losses = [
            contrastive_loss(a, o, temperature, measure, mask=m) for (a, *o), m in zip(parts, masks, strict=True)
        ]
        loss = sum(losses) / 2
    else:
        loss = contrastive_loss(joined[0], joined[1:], temperature, measure, mask=mask, gather=gather)
    loss.backward()
    assert (first[0] + second[0]) / 2 == pytest.approx(loss.item(), abs=1e-12)
    for index, vector in enumerate(joined):
        torch.testing.assert_close(torch.cat([first[1][index], second[1][index]]), vector.grad)
    torch.testing.assert_close(first[2] + second[2], temperature.grad)
