import pytest
import torch

from transformers_gram.retrieval import alignment_metrics, retrieval_metrics, retrieval_ranks, summarize_ranks
from transformers_gram.volume import cosine, volume


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def sorted_ranks(distances, anchor_ids, candidate_ids):
    """By a full sort: position of the first candidate with the right id."""
    order = distances.argsort(dim=1)
    return (candidate_ids[order] == anchor_ids[:, None]).int().argmax(dim=1) + 1


@pytest.mark.parametrize("measure", [volume, cosine])
@pytest.mark.parametrize("chunk_size", [3, 7, 1000])
def test_ranks_equal_a_full_sort(measure, chunk_size):
    owners = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    ids = torch.arange(6)
    anchor, others = unit(10, 8), [unit(6, 8, seed=1), unit(6, 8, seed=2)]
    forward, backward = retrieval_ranks(measure, anchor, others, owners, ids, chunk_size)
    distances = measure(anchor, *others)
    assert torch.equal(forward, sorted_ranks(distances, owners, ids))
    assert torch.equal(backward, sorted_ranks(distances.T, ids, owners))


def test_a_collapsed_model_is_not_perfect():
    same = unit(1, 8).expand(20, 8)
    ids = torch.arange(20)
    forward, backward = retrieval_ranks(volume, same, [same, same], ids, ids)
    assert (forward == 20).all() and (backward == 20).all()
    diverged = torch.full((20, 8), float("nan"))
    forward, backward = retrieval_ranks(volume, diverged, [diverged, diverged], ids, ids)
    assert (forward == 20).all() and (backward == 20).all()


def test_ids_without_counterpart_are_named():
    with pytest.raises(ValueError, match=r"candidate ids \[2\]"):
        retrieval_ranks(cosine, unit(2, 4), [unit(3, 4)], torch.tensor([0, 1]), torch.arange(3))


def test_summary():
    summary = summarize_ranks(torch.tensor([1, 1, 2, 6, 30]))
    assert summary == {"R@1": 40.0, "R@5": 60.0, "R@10": 80.0, "median_rank": 2.0, "mean_rank": 8.0}


def test_metrics_of_a_perfect_model():
    anchor = unit(12, 32)
    embeds = {"text": anchor, "video": anchor.clone(), "audio": unit(12, 32, seed=1)}
    metrics = retrieval_metrics(embeds, "text", torch.arange(12), torch.arange(12))
    assert metrics["volume_text_to_clip_R@1"] == 100 and metrics["cosine_video_clip_to_text_R@1"] == 100
    assert metrics["cosine_audio_text_to_clip_R@1"] < 50
    assert {key.rsplit("_text_to_clip")[0] for key in metrics if "text_to_clip_R@1" in key} == {
        "volume",
        "cosine",
        "cosine_video",
        "cosine_audio",
    }


def test_alignment_shows_signs_and_degenerate_candidates():
    anchor, video = unit(10, 16), unit(10, 16, seed=1)
    audio = -anchor
    audio[:3] = video[:3]
    metrics = alignment_metrics({"text": anchor, "video": video, "audio": audio}, "text")
    expected = 1 - volume(anchor, video, audio).diagonal().mean().item()
    assert metrics["alignment"] == pytest.approx(expected, abs=1e-3)
    assert metrics["cosine_of_text_and_audio"] == pytest.approx(((anchor * audio).sum(-1)).mean().item(), abs=1e-6)
    assert metrics["cosine_of_text_and_audio"] < -0.5
    assert metrics["degenerate_rate"] == pytest.approx(0.3)
