import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    ASTFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from transformers_gram import GramConfig, GramModel, GramProcessor, GramVideoProcessor, MediaError, small_config
from transformers_gram.media import read_audio, read_video


@pytest.fixture
def clip(sample_clips):
    return sample_clips["test"][0]["video"]


def test_a_batch_goes_into_the_model(processor, sample_clips):
    rows = sample_clips["test"][:3]
    batch = processor(
        text=[captions[0] for captions in rows["text"]],
        videos=rows["video"],
        audio=rows["audio"],
        subtitle=["hello"] * 3,
        depth=rows["video"],
    )
    assert set(batch) == set(processor.model_input_names)
    assert batch["pixel_values_videos"].shape == (3, 2, 3, 64, 64)
    assert batch["input_features"].shape == (3, 64, 200)
    names = ("text", "video", "audio", "subtitle", "depth")
    model = GramModel(small_config(len(processor.tokenizer), names, hidden_size=16, num_layers=1))
    assert set(model(**batch).embeds) == set(names)


def test_save_and_load(processor, sample_clips, tmp_path):
    rows = sample_clips["test"][:2]
    arguments = {"text": ["a red ring", "low beeps"], "videos": rows["video"], "audio": rows["audio"]}
    expected = processor(**arguments)
    processor.save_pretrained(tmp_path)
    GramConfig().save_pretrained(tmp_path)
    for loaded in (GramProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is GramProcessor and loaded.audio_seconds == 2
        assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
        batch = loaded(**arguments)
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is GramVideoProcessor
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(processor.tokenizer)


def test_all_forms_of_a_video_give_the_same_pixels(processor, clip):
    frames = read_video(clip, 16)
    with open(clip, "rb") as file:
        content = file.read()
    forms = {
        "path": clip,
        "datasets": {"path": clip, "bytes": None},
        "content in datasets": {"path": None, "bytes": content},
        "bytes": content,
        "file": io.BytesIO(content),
        "array": frames,
        "channels first": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
        "tensor": torch.from_numpy(frames),
        "images": [Image.fromarray(frame) for frame in frames],
    }
    expected = processor(videos=[clip])["pixel_values_videos"]
    for name, form in forms.items():
        assert torch.equal(processor(videos=[form])["pixel_values_videos"], expected), name
    assert torch.equal(processor(videos=clip)["pixel_values_videos"], expected)
    assert torch.equal(processor(videos=forms["images"])["pixel_values_videos"], expected)


def test_all_forms_of_a_sound_give_the_same_features(processor, clip):
    waveform = read_audio(clip, 16000)
    forms = [clip, waveform, torch.from_numpy(waveform), {"array": waveform, "sampling_rate": 16000}]
    expected = processor(audio=[clip])["input_features"]
    for form in forms:
        assert torch.equal(processor(audio=[form])["input_features"], expected)
        assert torch.equal(processor(audio=form)["input_features"], expected)


def test_numbers_of_any_kind_mean_the_same(processor, clip):
    frames, waveform = read_video(clip, 2), read_audio(clip, 16000)
    expected = processor(videos=[frames], audio=[waveform])
    floats = (frames / 255).astype(np.float32)
    integers = np.round(waveform * 32767).astype(np.int16)
    batch = processor(videos=[floats], audio=[integers], sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values_videos"], expected["pixel_values_videos"])
    torch.testing.assert_close(batch["input_features"], expected["input_features"], rtol=0, atol=0.1)


def test_arguments_of_the_tokenizer(processor):
    batch = processor(text=["a red ring", "a"], padding="max_length", max_length=12, truncation=True)
    assert batch["input_ids"].shape == (2, 12)
    assert processor(text=["a red ring"], max_length=3)["input_ids"].shape == (1, 3)


def test_sounds_of_different_length_are_padded_for_raw_waveform_encoders(processor):
    raw = GramProcessor(processor.tokenizer, feature_extractor=Wav2Vec2FeatureExtractor(return_attention_mask=False))
    assert raw(audio=[np.ones(800, np.float32), np.ones(500, np.float32)])["input_features"].shape == (2, 800)


def test_seeds_draw_frames_and_sound_windows(processor):
    frames = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    load = processor.video_processor.load
    assert load(frames)[:, 0, 0, 0].tolist() == [9, 29]
    drawn = [load(frames, np.random.default_rng(seed))[:, 0, 0, 0].tolist() for seed in range(20)]
    assert all(first < 20 <= second for first, second in drawn)
    assert len({tuple(pair) for pair in drawn}) > 15

    ramp = np.arange(16000 * 5, dtype=np.float32)
    assert processor.load_audio(ramp)[0] == 24000 and len(processor.load_audio(ramp)) == 32000
    starts = {processor.load_audio(ramp, np.random.default_rng(seed))[0] for seed in range(20)}
    assert len(starts) > 15 and max(starts) <= 48000
    assert len(processor.load_audio(ramp[:1000])) == 1000

    first = processor(videos=[frames], audio=[ramp], sampling_seeds=[3])
    again = processor(videos=[frames], audio=[ramp], sampling_seeds=[3])
    other = processor(videos=[frames], audio=[ramp], sampling_seeds=[4])
    assert all(torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key]) for key in first)


def test_resize_crop_and_normalise():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 50, 80, 3), dtype=np.uint8)
    crop = {"height": 24, "width": 24}
    video_processor = GramVideoProcessor(num_frames=3, size={"shortest_edge": 30}, crop_size=crop, antialias=True)
    pixels = video_processor([frames])["pixel_values_videos"][0]
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    video = F.interpolate(video, (30, 48), mode="bilinear", antialias=True)[..., 3:27, 12:36]
    mean, std = (torch.tensor(v)[:, None, None] for v in (video_processor.image_mean, video_processor.image_std))
    torch.testing.assert_close(pixels, (video - mean) / std)

    squashed = video_processor([frames], size={"height": 20, "width": 20}, do_center_crop=False, do_normalize=False)
    squashed = squashed["pixel_values_videos"]
    assert squashed.shape == (1, 3, 3, 20, 20) and squashed.min() >= 0 and squashed.max() <= 1


def test_errors_say_what_to_do(processor, clip, tmp_path):
    grey = np.zeros((4, 64, 64), np.uint8)
    frames = np.full((4, 64, 64, 3), 9, np.uint8)
    frames[0] = 0
    for arguments, kind, message in [
        ({"text": ["fine", " "]}, ValueError, r"`text\[1\]` must be a text"),
        ({"text": [None]}, ValueError, r"`text\[0\]`.*None"),
        ({"subtitle": [""]}, ValueError, r"`subtitle\[0\]`"),
        ({}, ValueError, "at least one of"),
        ({"videos": [grey]}, ValueError, r"\[4, 64, 64\]"),
        ({"videos": [frames.astype(np.float32)]}, ValueError, r"must lie in \[0, 1\]; got \[0, 9\]"),
        ({"videos": [[frames[0], frames[1, :9]]]}, ValueError, "of one shape"),
        ({"videos": []}, ValueError, "at least one video"),
        ({"videos": [frames], "videos_kwargs": {"num_frame": 3}}, TypeError, r"\['num_frame'\]"),
        ({"audio": []}, ValueError, "at least one sound"),
        ({"audio": np.full(9, np.nan)}, ValueError, "finite"),
        ({"audio": np.zeros(9), "sampling_rate": 44100}, ValueError, "44100 Hz"),
        ({"text": "a", "return_tensors": "np"}, ValueError, "return_tensors"),
        ({"videos": [frames], "sampling_seeds": [1, 2]}, ValueError, r"2 entries for \[1\] items"),
        ({"videos": [frames.astype(np.uint16)]}, ValueError, "must be uint8; got .*uint16"),
        ({"audio": np.zeros(9, np.uint8)}, ValueError, "signed integers; got uint8"),
        ({"videos": [np.zeros((1, 64, 64, 3), np.uint8)]}, ValueError, "2 frames.*1"),
        ({"audio": [np.zeros(0, np.float32)]}, ValueError, r"not empty.*got \[0\]"),
        ({"audio": [np.zeros((2, 100), np.float32)]}, ValueError, r"mono.*\[2, 100\]"),
        ({"audio": {"array": np.zeros(9), "sampling_rate": 44100}}, ValueError, "44100 Hz"),
        ({"videos": ["nowhere.mp4"]}, FileNotFoundError, "nowhere.mp4"),
    ]:
        with pytest.raises(kind, match=message):
            processor(**arguments)
    with pytest.raises(MediaError, match=r"20 frames.*16"):
        processor(videos=[clip], videos_kwargs={"num_frames": 20})
    small = GramVideoProcessor(num_frames=1, do_resize=False)
    with pytest.raises(ValueError, match=r"\[64, 64\] are smaller than the crop \[224, 224\]"):
        small(clip)
    sizes = [np.zeros((1, 8, 9, 3), np.uint8), np.zeros((1, 9, 8, 3), np.uint8)]
    with pytest.raises(ValueError, match="different shapes"):
        GramVideoProcessor(num_frames=1, do_resize=False, do_center_crop=False)(sizes)
    with pytest.raises(TypeError, match=r"\['num_frame'\]"):
        GramVideoProcessor(num_frame=3)
    with pytest.raises(ValueError, match="audio_seconds"):
        GramProcessor(processor.tokenizer, audio_seconds=-1)
    with pytest.raises(TypeError, match="video_processor"):
        GramProcessor(processor.tokenizer, ViTImageProcessor())


def test_from_encoders_takes_over_their_preprocessing(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]
    BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}).save_pretrained(tmp_path / "text")
    ViTImageProcessor(size={"height": 48, "width": 48}, image_mean=[0.1] * 3).save_pretrained(tmp_path / "vision")
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path / "audio")
    processor = GramProcessor.from_encoders(
        *(str(tmp_path / name) for name in ("text", "vision", "audio")), num_frames=3, audio_seconds=0.5
    )
    video, sound = np.zeros((5, 90, 60, 3), np.uint8), np.ones(16000, np.float32)
    batch = processor(text=["a dog"], videos=[video], audio=[sound])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3]]
    assert batch["pixel_values_videos"].shape == (1, 3, 3, 48, 48)
    torch.testing.assert_close(batch["pixel_values_videos"].mean(), torch.tensor(-0.1 / 0.5))
    assert batch["input_features"].shape == (1, 64, 32)
    processor.save_pretrained(tmp_path / "gram")
    assert torch.equal(
        GramProcessor.from_pretrained(tmp_path / "gram")(audio=[sound])["input_features"], batch["input_features"]
    )
