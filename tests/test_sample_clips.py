import itertools
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from transformers_gram import sample_clips
from transformers_gram.sample_clips import HEARD, SEEN, WORDS, load_sample_clips


NUM_TRAIN, NUM_TEST, SEED = 30, 9, 3
QUARTERS = [sample_clips.NUM_FRAMES // 4, 3 * sample_clips.NUM_FRAMES // 4]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clips(cache):
    return load_sample_clips(NUM_TRAIN, NUM_TEST, SEED, str(cache))


@pytest.fixture(scope="module")
def default_rows():
    """The rows of the default data set; making them writes no clips."""
    rows = defaultdict(list)
    for row in sample_clips._make_rows(1536, 256, 0):
        rows[row["split"]].append(row)
    return rows


def look(row):
    return tuple(row[name] for name in SEEN)


def sound(row):
    return tuple(row[name] for name in HEARD)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values_named(caption: str, attribute: str) -> set[str]:
    return {
        value
        for value, words in WORDS[attribute].items()
        if any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", caption) for word in words)
    }


# The data set


def test_columns(clips):
    columns = ["id", "text", "video", "audio", "label", *SEEN, *HEARD]
    assert clips.column_names == {"train": columns, "test": columns}
    assert (len(clips["train"]), len(clips["test"])) == (NUM_TRAIN, NUM_TEST)
    assert all(len(set(captions)) == 3 for captions in clips["train"]["text"])
    assert all(len(captions) == 1 for captions in clips["test"]["text"])
    ids = [*clips["train"]["id"], *clips["test"]["id"]]
    assert len(set(ids)) == len(ids)
    for row in itertools.chain(*clips.values()):
        assert Path(row["video"]).is_absolute() and Path(row["video"]).is_file()
        assert row["audio"] == row["video"]
        assert row["label"] == row["colour"]


def test_files_decode(clips):
    for row in clips["test"]:
        with av.open(row["video"]) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.width, video.height, video.average_rate) == (64, 64, 8)
            assert (audio.rate, audio.layout.name) == (16_000, "mono")
            assert container.duration / av.time_base == pytest.approx(2.0, abs=0.01)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        with av.open(row["audio"]) as container:
            waveform = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert len(frames) == 16
        assert 32_000 <= waveform.size < 32_000 + 1024  # AAC comes in packets of 1024 samples
        assert 0.25 < np.abs(waveform).max() < 0.85


def test_mp4_gives_back_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    row = {"shape": "ring", "colour": "blue", "motion": "depth", "pitch": "low", "timbre": "bell", "rhythm": "slow"}
    frames, waveform = sample_clips.draw_frames(row, rng), sample_clips.play_sound(row, rng)
    sample_clips.write_mp4(tmp_path / "clip.mp4", frames, waveform)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.abs(read.astype(float) - frames).mean() < 4
    with av.open(str(tmp_path / "clip.mp4")) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])[: waveform.size]
    assert np.corrcoef(heard, waveform)[0, 1] > 0.99  # and so it is neither late nor early


def test_mpeg4_is_used_where_h264_is_not_built_in(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    frames = np.full((16, 64, 64, 3), 90, np.uint8)
    sample_clips.write_mp4(tmp_path / "clip.mp4", frames, np.zeros(32_000, np.float32))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec.name == "mpeg4"
        assert sum(1 for _ in container.decode(video=0)) == 16


# The splits


@pytest.mark.parametrize("num_train, num_test", [(1536, 256), (100, 1), (100, 7), (100, 250), (12, 6900)])
def test_splits_share_no_combination(num_train, num_test):
    rows = sample_clips._make_rows(num_train, num_test, 1)
    assert Counter(row["split"] for row in rows) == {"train": num_train, "test": num_test}
    assert len({look(row) + sound(row) for row in rows}) == num_train + num_test


def test_test_split_is_a_grid(default_rows):
    looks, sounds = Counter(map(look, default_rows["test"])), Counter(map(sound, default_rows["test"]))
    assert len(looks) == len(sounds) == 16
    assert set(looks.values()) == set(sounds.values()) == {16}


@pytest.mark.parametrize("num_test", [2, 7, 250])
def test_grid_of_a_number_that_is_no_square(num_test):
    rows = [row for row in sample_clips._make_rows(10, num_test, 0) if row["split"] == "test"]
    looks, sounds = Counter(map(look, rows)), Counter(map(sound, rows))
    assert max(len(looks), len(sounds)) == np.ceil(np.sqrt(num_test))
    assert len([count for count in looks.values() if count < len(sounds)]) <= 1


def test_training_split_uses_all_looks_and_sounds_equally(default_rows):
    looks, sounds = Counter(map(look, default_rows["train"])), Counter(map(sound, default_rows["train"]))
    assert (len(looks), len(sounds)) == (144, 48)
    assert max(looks.values()) - min(looks.values()) <= 1
    assert max(sounds.values()) - min(sounds.values()) <= 2


@pytest.mark.parametrize("num_train, num_test", [(48, 64), (1536, 256)])
def test_both_splits_use_every_value(num_train, num_test):
    rows = sample_clips._make_rows(num_train, num_test, 5)
    for split, attribute in itertools.product(("train", "test"), SEEN + HEARD):
        assert {row[attribute] for row in rows if row["split"] == split} == set(WORDS[attribute])


# The captions


def test_every_caption_names_every_attribute_and_no_other_value(default_rows):
    for row in itertools.chain(*default_rows.values()):
        for caption, attribute in itertools.product(row["text"], SEEN + HEARD):
            assert values_named(caption, attribute) == {row[attribute]}, (caption, attribute)


def test_words_and_value_names_belong_to_one_value():
    words = [word for values in WORDS.values() for synonyms in values.values() for word in synonyms]
    assert len(set(words)) == len(words)
    values = [value for values in WORDS.values() for value in values]
    assert len(set(values)) == len(values)
    assert all(len(synonyms) >= 2 for values in WORDS.values() for synonyms in values.values())


def test_templates_name_no_attribute_themselves():
    for template, attribute in itertools.product(sample_clips.TEMPLATES, WORDS):
        assert values_named(template.format(thing="", motion="", sound=""), attribute) == set()


def test_caption_grammar_order_and_vocabulary(default_rows):
    captions = [caption for row in itertools.chain(*default_rows.values()) for caption in row["text"]]
    assert not [caption for caption in captions if re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)]
    assert any(" an " in f" {caption}" for caption in captions)
    assert len({word for caption in captions for word in re.findall(r"[\w-]+", caption)}) <= 110
    colours = "|".join(word for words in WORDS["colour"].values() for word in words)
    sound_first = [bool(re.search(rf"(tone|note|beep)s?\b.*\b({colours})\b", caption)) for caption in captions]
    assert 0.4 < np.mean(sound_first) < 0.6


def test_several_notes_are_spoken_of_in_the_plural(default_rows):
    for row in default_rows["train"]:
        plural = row["rhythm"] in ("slow", "fast")
        assert all(bool(re.search(r"\b(beeps|notes)\b", caption)) == plural for caption in row["text"])


# What is seen and heard


@pytest.mark.parametrize(
    "motion, x_y_size",
    [
        ("horizontal", (True, False, False)),
        ("vertical", (False, True, False)),
        ("diagonal", (True, True, False)),
        ("depth", (False, False, True)),
    ],
)
def test_motions_differ_in_the_unordered_frames_at_the_quarters(motion, x_y_size):
    attributes = {"shape": "circle", "colour": "white", "motion": motion}
    for seed in range(5):
        frames = sample_clips.draw_frames(attributes, np.random.default_rng(seed))[QUARTERS].mean(-1)
        white = frames > 160
        rows, columns = np.mgrid[:64, :64]
        y, x = ((axis * white).sum((1, 2)) / white.sum((1, 2)) for axis in (rows, columns))
        area = np.sqrt(white.sum((1, 2)))
        moved = (abs(x[0] - x[1]) > 15, abs(y[0] - y[1]) > 15, area.max() / area.min() > 1.6)
        assert moved == x_y_size
        assert white[:, 0].sum() == white[:, -1].sum() == white[:, :, 0].sum() == white[:, :, -1].sum() == 0


@pytest.mark.parametrize("shape, colour", zip(WORDS["shape"], WORDS["colour"], strict=True))
def test_shapes_have_their_colour(shape, colour):
    attributes = {"shape": shape, "colour": colour, "motion": "depth"}
    frames = sample_clips.draw_frames(attributes, np.random.default_rng(0)).astype(float)
    distances = {name: np.abs(frames - rgb).sum(-1).min() for name, rgb in sample_clips.COLOURS.items()}
    assert min(distances, key=distances.get) == colour


def test_shapes_cover_different_areas():
    areas = {}
    for shape in WORDS["shape"]:
        attributes = {"shape": shape, "colour": "white", "motion": "depth"}
        frames = sample_clips.draw_frames(attributes, np.random.default_rng(0)).mean(-1)
        areas[shape] = (frames > 160).sum()
    assert areas["circle"] > areas["cross"] > areas["star"]
    assert areas["circle"] > areas["ring"]
    assert len(set(areas.values())) == len(areas)


@pytest.mark.parametrize("pitch, timbre", itertools.product(WORDS["pitch"], WORDS["timbre"]))
def test_sounds_have_their_pitch_and_do_not_clip(pitch, timbre):
    attributes = {"pitch": pitch, "timbre": timbre, "rhythm": "long"}
    for seed in range(3):
        waveform = sample_clips.play_sound(attributes, np.random.default_rng(seed))
        assert waveform.shape == (32_000,) and waveform.dtype == np.float32
        assert 0.28 < np.abs(waveform).max() < 0.75
        assert np.abs(waveform[[0, -1]]).max() < 0.03
        power = np.abs(np.fft.rfft(waveform)) ** 2
        strongest = power.argmax() / sample_clips.DURATION
        assert strongest == pytest.approx(sample_clips.PITCHES[pitch], rel=0.6 if timbre == "hiss" else 0.08)


@pytest.mark.parametrize("rhythm, onsets", [("long", 1), ("slow", 3), ("fast", 9), ("rising", 1)])
def test_rhythms_have_their_notes(rhythm, onsets):
    waveform = sample_clips.play_sound({"pitch": "high", "timbre": "pure", "rhythm": rhythm}, np.random.default_rng(1))
    loud = np.abs(waveform).reshape(-1, 160).max(1) > 0.15
    assert np.count_nonzero(loud[1:] & ~loud[:-1]) == onsets
    first, last = (np.abs(np.fft.rfft(part)).argmax() for part in (waveform[3200:8000], waveform[20800:25600]))
    assert (last > 1.3 * first) == (rhythm == "rising")


def test_unknown_values_are_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        sample_clips.draw_frames({"shape": "blob", "colour": "red", "motion": "depth"}, rng)
    with pytest.raises(ValueError, match="unknown timbre 'harp'"):
        sample_clips.play_sound({"pitch": "low", "timbre": "harp", "rhythm": "long"}, rng)


# The cache


def test_same_seed_same_bytes(clips, cache, tmp_path):
    again = load_sample_clips(NUM_TRAIN, NUM_TEST, SEED, str(tmp_path))
    assert again["train"]["text"] == clips["train"]["text"]
    first, second = (next(path for path in folder.iterdir() if path.is_dir()) for folder in (cache, tmp_path))
    assert files(first) == files(second)
    assert len(files(first)) == NUM_TRAIN + NUM_TEST + 1


def test_other_seed_other_clips(clips, tmp_path):
    other = load_sample_clips(4, 2, SEED + 1, str(tmp_path))
    assert other["train"]["text"][:4] != clips["train"]["text"][:4]
    assert Path(other["train"][0]["video"]).read_bytes() != Path(clips["train"][0]["video"]).read_bytes()


def test_second_call_reads_the_cache(clips, cache, monkeypatch):
    monkeypatch.setattr(sample_clips, "_write_clips", lambda *args: pytest.fail("written a second time"))
    again = load_sample_clips(NUM_TRAIN, NUM_TEST, SEED, str(cache))
    assert again["test"].to_list() == clips["test"].to_list()


def test_default_folder_and_relative_paths(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hub"))
    clips = load_sample_clips(2, 1)
    folder = tmp_path / "hub" / "transformers_gram" / "sample_clips" / "v1-train2-test1-seed0"
    assert clips["train"][0]["video"] == str(folder / "train" / "0000.mp4")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["video"] for row in rows] == ["train/0000.mp4", "train/0001.mp4", "test/0000.mp4"]


def test_leftovers_of_a_killed_writer_are_not_a_cache(tmp_path, monkeypatch):
    write_mp4 = sample_clips.write_mp4

    def fail_in_test_split(path, *args):
        if path.parent.name == "test":
            raise OSError("No space left on device")
        write_mp4(path, *args)

    monkeypatch.setattr(sample_clips, "write_mp4", fail_in_test_split)
    with pytest.raises(OSError, match="No space left"):
        load_sample_clips(3, 1, cache_dir=str(tmp_path))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["v1-train3-test1-seed0.incomplete"]

    clips = load_sample_clips(3, 1, cache_dir=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["v1-train3-test1-seed0"]
    assert all(Path(row["video"]).is_file() for row in itertools.chain(*clips.values()))


def test_of_two_writers_at_once_one_writes(tmp_path, monkeypatch):
    calls = []
    write_clips = sample_clips._write_clips
    monkeypatch.setattr(sample_clips, "_write_clips", lambda *args: (calls.append(1), write_clips(*args)))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load_sample_clips(12, 4, cache_dir=str(tmp_path)), range(2))
    assert len(calls) == 1
    assert first["train"].to_list() == second["train"].to_list()


# Arguments and imports


@pytest.mark.parametrize("num_train, num_test", [(0, 1), (1, 0), (-1, 4), (6912, 1), (1, 6912)])
def test_counts_out_of_range(num_train, num_test, tmp_path):
    with pytest.raises(ValueError, match=f"num_train={num_train}, num_test={num_test}.*at most 6912"):
        load_sample_clips(num_train, num_test, cache_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_negative_seed(tmp_path):
    with pytest.raises(ValueError, match="seed=-1"):
        load_sample_clips(seed=-1, cache_dir=str(tmp_path))


def test_import_needs_neither_av_nor_datasets():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('sample_clips', {sample_clips.__file__!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "assert not {'av', 'datasets', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
