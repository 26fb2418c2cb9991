from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from transformers_gram import GramDataCollator, MediaError, SeededRows, small_config
from transformers_gram.sample_clips import write_mp4


@pytest.fixture
def collator(processor):
    return GramDataCollator(processor, small_config(len(processor.tokenizer)))


@pytest.fixture
def row(sample_clips):
    return sample_clips["train"][0]


def test_rows_become_the_batch_of_their_columns(collator, sample_clips):
    rows = [dict(row) for row in sample_clips["train"]][:3]
    batch = collator(rows)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values_videos", "input_features"}
    for row in rows:
        del row["text"]
    assert set(collator(rows)) == {"pixel_values_videos", "input_features"}


def test_without_seed_the_first_caption_and_the_middle_frames(collator, row):
    batch = collator([row])
    expected = collator.processor(text=[row["text"][0]], videos=[row["video"]], audio=[row["audio"]])
    assert batch.keys() == expected.keys() and all(torch.equal(batch[key], expected[key]) for key in expected)


def test_draws_depend_on_seed_epoch_and_row_alone(collator, sample_clips):
    rows = SeededRows(sample_clips["train"], seed=1)
    seeds = [rows[index]["sampling_seed"] for index in range(len(rows))]
    assert len(set(seeds)) == len(rows)
    assert torch.equal(collator([rows[0]])["input_ids"], collator([rows[0]])["input_ids"])
    rows.set_epoch(1)
    assert all(rows[index]["sampling_seed"] != seed for index, seed in enumerate(seeds))
    assert SeededRows(sample_clips["train"], seed=2)[0]["sampling_seed"] not in seeds
    rows.set_epoch(0)
    assert [rows[index]["sampling_seed"] for index in range(len(rows))] == seeds


def test_caption_frames_and_sound_are_drawn_independently(collator):
    frames = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    ramp = np.arange(16000 * 6, dtype=np.float32)
    drawn = set()
    for seed in range(200):
        row = {"id": seed, "text": ["a", "b"], "video": frames, "audio": ramp, "sampling_seed": seed}
        first = collator._load(collator._video, row, "video")[0, 0, 0, 0]
        start = collator._load(collator._audio, row, "audio")[0]
        drawn.add((collator._load(collator._text, row, "text"), bool(first < 10), bool(start < 32000)))
    assert len(drawn) == 8


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_see_the_epoch_and_change_nothing(collator, sample_clips, persistent):
    rows = SeededRows(sample_clips["train"].select(range(8)), seed=1)
    alone = DataLoader(rows, batch_size=4, collate_fn=collator)
    workers = DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=2, persistent_workers=persistent)
    epochs = []
    for epoch in range(2):
        rows.set_epoch(epoch)
        for expected, batch in zip(alone, workers, strict=True):
            assert all(torch.equal(batch[key], expected[key]) for key in expected)
        epochs.append(batch["pixel_values_videos"])
    assert not torch.equal(*epochs)


def test_tensors_of_other_modalities_are_stacked(processor):
    config = small_config(50)
    config.modalities = {
        **config.modalities,
        "sensor": {"encoder": "x", "pooling": "mean", "inputs": {"sensor_values": "x", "sensor_mask": "m"}},
    }
    collator = GramDataCollator(processor, config)
    rows = [{"id": index, "sensor_values": [[index, 1.0]] * 3} for index in range(4)]
    assert collator(rows)["sensor_values"].shape == (4, 3, 2)
    rows[2]["sensor_values"] = [[1.0, 2.0]]
    with pytest.raises(ValueError, match=r"`sensor_values` differ in shape: \[\(1, 2\), \(3, 2\)\]"):
        collator(rows)


def write_bad_files(folder, good):
    content = Path(good).read_bytes()
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video")
    frames = np.zeros((16, 64, 64, 3), np.uint8)
    write_mp4(folder / "one_frame.mp4", frames[:1], np.zeros(32000, np.float32))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"video": "truncated.mp4"}, "truncated.mp4"),
        ({"audio": "truncated.mp4"}, "truncated.mp4"),
        ({"video": "empty.mp4"}, "empty.mp4.*empty"),
        ({"video": "text.mp4"}, "text.mp4.*not a media file"),
        ({"video": "missing.mp4"}, "missing.mp4.*no such file"),
        ({"video": "one_frame.mp4"}, "one_frame.mp4.*2 frames.*1"),
        ({"video": None}, "has no `video`; remove the row"),
        ({"audio": np.zeros(0, np.float32)}, "`audio`.*empty"),
        ({"text": ["", "x"]}, "`text`.*not empty"),
        ({"text": []}, "`text`.*not empty"),
        ({"text": 5}, "`text`"),
        ({"video": 5}, "`video`.*int"),
    ],
)
def test_errors_name_the_row(collator, row, tmp_path, change, message):
    write_bad_files(tmp_path, row["video"])
    change = {key: str(tmp_path / value) if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(ValueError, match=f"row 'train-0000'.*{message}") as error:
        collator([{**row}, {**row, **change}])
    if isinstance(change.get("video"), str):
        assert isinstance(error.value, MediaError)


def test_an_error_in_a_worker_names_the_row(collator, row, tmp_path):
    rows = [{**row, "video": str(tmp_path / "lost.mp4")}]
    with pytest.raises(MediaError, match=r"row 'train-0000', `video`: .*lost.mp4"):
        next(iter(DataLoader(rows, collate_fn=collator, num_workers=1)))


def test_columns_of_no_modality(collator):
    with pytest.raises(ValueError, match=r"\['id', 'smell'\] hold none of the modalities"):
        collator([{"id": 1, "smell": "rose"}])
