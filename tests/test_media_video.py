import av
import numpy as np
import pytest
from media_files import FPS, H264, decode_linearly, need, pictures, write_video
from PIL import Image

from transformers_gram import media
from transformers_gram.media import MediaError, read_video, sample_frame_indices


# Which frames


@pytest.mark.parametrize(
    ("total", "number", "middles"),
    [
        (7, 1, [3]),
        (8, 1, [3]),
        (9, 8, [0, 2, 3, 4, 5, 6, 7, 8]),
        (30, 4, [3, 11, 19, 26]),
        (131, 8, [8, 25, 42, 58, 74, 90, 106, 122]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_middle_frames_are_those_of_the_reference(total, number, middles):
    assert sample_frame_indices(total, number).tolist() == middles


def test_random_frames_cover_their_segments():
    rng = np.random.default_rng(0)
    drawn = np.stack([sample_frame_indices(11, 3, rng) for _ in range(200)])
    assert [set(column) for column in drawn.T.tolist()] == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10}]


def test_too_few_frames_name_both_numbers():
    with pytest.raises(ValueError, match=r"\b8 frames.*\b5\b"):
        sample_frame_indices(5, 8)
    with pytest.raises(ValueError, match="0 frames"):
        sample_frame_indices(5, 0)


# Frames

OPEN_GROUPS = {"b_frames": 3, "x264-params": "open-gop=1:b-adapt=0:scenecut=0:min-keyint=1"}
VIDEOS = {
    "b_frames.mp4": {"b_frames": 3},
    "b_frames.mkv": {"b_frames": 3},
    "pyramid.mov": {"b_frames": 5, "gop": 25, "b-pyramid": "normal"},
    "keyframes_only.mp4": {"gop": 1, "b_frames": 0},
    "short_groups.mp4": {"gop": 2, "b_frames": 1},
    "open_groups.mp4": OPEN_GROUPS,
    "open_groups.mkv": OPEN_GROUPS,
    "intra_refresh.mp4": {"b_frames": 0, "x264-params": "intra-refresh=1"},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "no_timestamps.avi": {"b_frames": 2},
    "fields.ts": {"x264-params": "interlaced=1"},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none:open-gop=1:b-adapt=0:keyint=12"},
    "vp9.webm": {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"},
    "vp8.webm": {"codec": "libvpx", "deadline": "realtime", "cpu-used": "8"},
}


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_equal_those_of_decoding_everything(name, tmp_path):
    path = write_video(tmp_path / name, pictures(50), **VIDEOS[name])
    expected = decode_linearly(path)
    assert len(expected) == 50
    for number in (1, 2, 5, 13, 50):
        np.testing.assert_array_equal(read_video(path, number), expected[sample_frame_indices(50, number)])
        for seed in range(3):
            indices = sample_frame_indices(50, number, np.random.default_rng(seed))
            np.testing.assert_array_equal(read_video(path, number, np.random.default_rng(seed)), expected[indices])


def test_hidden_frames_do_not_count(tmp_path):
    path = write_video(tmp_path / "clip.webm", pictures(20), codec="libvpx", **{"cpu-used": "8"})
    with av.open(str(path)) as container:
        packet = bytes(list(container.demux(video=0))[7])
    path.write_bytes(path.read_bytes().replace(packet, bytes([packet[0] & ~16]) + packet[1:]))  # "not to be shown"
    expected = decode_linearly(path)
    assert len(expected) == 19
    np.testing.assert_array_equal(read_video(path, 5), expected[sample_frame_indices(19, 5)])


@pytest.fixture
def decoded(monkeypatch):
    """How many frames were decoded, by attempt."""
    counts, decode_runs = [], media._decode_runs

    def counted(*args):
        counts.append(0)
        for frame in decode_runs(*args):
            counts[-1] += 1
            yield frame

    monkeypatch.setattr(media, "_decode_runs", counted)
    return counts


def test_only_needed_frames_are_decoded(clip, decoded):
    need(H264)
    read_video(clip, 2)  # frame 14, the third of the second group, and frame 44, the ninth of the fourth
    assert len(decoded) == 1
    assert 2 <= decoded[0] <= 4 + 10  # a B-frame comes after the frame that it points ahead to


def test_frames_before_an_open_group_are_decoded_from_the_group_before(tmp_path, decoded):
    path = write_video(tmp_path / "open.mp4", pictures(50), **OPEN_GROUPS)
    for number in (5, 13, 50):
        read_video(path, number)
    assert len(decoded) == 3  # one attempt each


def test_frames_are_those_that_were_written(clip):
    frames = read_video(clip, 3)
    assert (frames.shape, frames.dtype) == ((3, 48, 64, 3), np.uint8)
    written = pictures(60)[[9, 29, 49]].astype(int)
    assert np.abs(frames - written).mean() < 3
    assert np.abs(frames[::-1] - written).mean() > 10


def test_colours_do_not_depend_on_the_tag(tmp_path):
    plain, tagged = tmp_path / "plain.mp4", tmp_path / "tagged.mp4"
    write_video(plain, pictures(4))
    write_video(tagged, pictures(4), colorspace="bt709")
    with av.open(str(tagged)) as container:
        by_tag = next(container.decode(video=0)).to_ndarray(format="rgb24")
    np.testing.assert_array_equal(read_video(plain, 4), read_video(tagged, 4))
    assert (by_tag != read_video(tagged, 4)[0]).any()


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((1, 0, 0, 1), 0)]
)
def test_rotation_is_applied(clip, matrix, turns):
    data = bytearray(clip.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (entry << 16 for entry in matrix)
    entries = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(entry.to_bytes(4, "big", signed=True) for entry in entries)
    np.testing.assert_array_equal(read_video(bytes(data), 5), np.rot90(read_video(clip, 5), turns, axes=(1, 2)))


def remux(sources, target, change, **options):
    """The video packets of the sources that `change(source number, packet)` does not turn down, in one file."""
    with av.open(str(target), "w", options=options) as output:
        copy = None
        for number, path in enumerate(sources):
            with av.open(str(path)) as source:
                copy = copy or output.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size and change(number, packet):
                        packet.stream = copy
                        output.mux(packet)
    return target


def test_frames_that_an_edit_list_cuts_off_do_not_count(tmp_path):
    def shift(number, packet):
        ticks = int(17 / FPS / packet.time_base)
        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        return True

    whole = write_video(tmp_path / "whole.mp4", pictures(48))
    trimmed = remux([whole], tmp_path / "trimmed.mp4", shift, avoid_negative_ts="disabled")
    expected = decode_linearly(trimmed)
    assert len(expected) == 48 - 17
    for number in (3, 31):
        np.testing.assert_array_equal(read_video(trimmed, number), expected[sample_frame_indices(31, number)])


def test_frames_whose_keyframe_was_cut_off_do_not_count(tmp_path):
    keyframes = []

    def skip_first_group(number, packet):
        keyframes.extend([packet] * packet.is_keyframe)
        return len(keyframes) > 1

    whole = write_video(tmp_path / "whole.mkv", pictures(50), **OPEN_GROUPS)
    cut = remux([whole], tmp_path / "cut.mkv", skip_first_group)
    expected = decode_linearly(cut)
    with av.open(str(cut)) as container:
        assert len(expected) < sum(packet.size > 0 for packet in container.demux(video=0))
    np.testing.assert_array_equal(read_video(cut, 7), expected[sample_frame_indices(len(expected), 7)])


def test_frames_of_one_time_are_told_apart(tmp_path):
    def pair(number, packet):
        packet.pts = packet.dts = packet.pts // 80 * 80
        return True

    whole = write_video(tmp_path / "whole.mkv", pictures(20), b_frames=0)
    pairs = remux([whole], tmp_path / "pairs.mkv", pair)
    with av.open(str(pairs)) as container:
        assert len({packet.pts for packet in container.demux(video=0) if packet.size}) == 10
    np.testing.assert_array_equal(read_video(pairs, 7), decode_linearly(pairs)[sample_frame_indices(20, 7)])


def test_frames_that_change_size_are_an_error(tmp_path):
    def append(number, packet):
        packet.pts = packet.dts = packet.pts + 200 * number
        return True

    sizes = {"small.webm": pictures(5), "large.webm": pictures(5, 96, 128)}
    parts = [write_video(tmp_path / name, frames, "libvpx-vp9", **{"cpu-used": "8"}) for name, frames in sizes.items()]
    with pytest.raises(MediaError, match=r"both\.webm: the size of its frames changes"):
        read_video(remux(parts, tmp_path / "both.webm", append), 10)


@pytest.mark.parametrize("name", ["video1_frame8", "video2_frame27"])
def test_real_clips_give_the_frames_of_opencv(name, real_media):
    golden = Image.open(real_media.parent / "reference" / "media" / f"{name}_cv2.png").convert("RGB")
    clip = real_media / "videos" / f"{name.split('_')[0]}.mp4"
    np.testing.assert_array_equal(read_video(clip, 8)[0], np.asarray(golden))
