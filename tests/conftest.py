import os
from pathlib import Path

import pytest
import torch


# Nothing in the tests may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def real_media():
    folder = SHARED / "media"
    if not folder.is_dir():
        pytest.skip("the real clips are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def sample_clips(tmp_path_factory):
    """16 training and 9 test clips, as mp4 files."""
    from transformers_gram import load_sample_clips

    return load_sample_clips(16, 9, cache_dir=tmp_path_factory.mktemp("sample_clips"))


@pytest.fixture(scope="session")
def processor(sample_clips):
    from transformers_gram import small_processor

    return small_processor([caption for captions in sample_clips["train"]["text"] for caption in captions])
