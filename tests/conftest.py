import os
from pathlib import Path

import av
import pytest
import torch
from media_files import H264, pictures, tones, write_video


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


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def clip(media_folder):
    """60 frames in groups of 12, with B-frames and stereo sound; the index is at the end of the file."""
    codec = H264 if H264 in av.codecs_available else "mpeg4"
    return write_video(media_folder / "clip.mp4", pictures(60), codec, sound=tones(2.4), sc_threshold="0")
