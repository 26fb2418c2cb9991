import io
import os
import pickle
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from transformers_gram import media
from transformers_gram.media import MediaError, read_audio, read_video, sample_frame_indices


FPS, RATE = 25, 44100
H264 = "libx264"


def need(*codecs):
    if missing := set(codecs) - av.codecs_available:
        pytest.skip(f"FFmpeg is built without {missing}")


def pictures(count, height=48, width=64):
    """A ramp of colours that moves on with each frame."""
    ramp = np.add.outer(np.arange(height) * 2, np.arange(width) * 2)
    frames = np.stack([(ramp + 7 * index) % 256 for index in range(count)])
    return (frames[..., None] * [1, 0.7, 0.4]).astype(np.uint8)


def tones(seconds=1.0, rate=RATE, channels=2, frequency=440):
    """`[channels, samples]`; each channel an octave above the one before and half as loud."""
    time = np.arange(round(seconds * rate)) / rate
    waves = [np.sin(2 * np.pi * frequency * 2**c * time) / 2 ** (c + 1) for c in range(channels)]
    return np.stack(waves).astype(np.float32)


def write_video(target, frames, codec=H264, gop=12, b_frames=2, sound=None, **options):
    """A video, with AAC sound if given. Options with a dash or of the muxer go by their FFmpeg names."""
    need(codec)
    muxer = {name: options.pop(name) for name in ("format", "movflags") if name in options}
    with av.open(as_target(target), "w", format=muxer.pop("format", None), options=muxer) as container:
        video = container.add_stream(codec, rate=FPS, options=options)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.codec_context.gop_size, video.codec_context.max_b_frames = gop, b_frames
        audio = sound is not None and container.add_stream("aac", rate=RATE, layout="stereo")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        if audio:
            encode_sound(container, audio, sound)
    return target


def write_sound(target, sound, codec="pcm_s16le", sample_format=None, rate=RATE, format=None, **muxer):
    need(codec)
    with av.open(as_target(target), "w", format=format, options=muxer) as container:
        audio = container.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo", 6: "5.1"}[len(sound)])
        audio.codec_context.format = sample_format or audio.codec_context.codec.audio_formats[0].name
        encode_sound(container, audio, sound)
    return target


def encode_sound(container, stream, sound):
    context = stream.codec_context
    context.open(strict=False)
    resampler = av.AudioResampler(context.format.name, context.layout, context.rate, context.frame_size or 1024)
    chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=context.layout.name)
    chunk.sample_rate = context.rate
    for frame in [*resampler.resample(chunk), *resampler.resample(None)]:
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def as_target(target):
    return target if hasattr(target, "write") else str(target)


class Pipe(io.BytesIO):
    """What cannot go back, to read again or to write down a length."""

    def seekable(self):
        return False

    def seek(self, *args):
        raise io.UnsupportedOperation("seek")


def decode_linearly(source):
    """Every frame as RGB, decoded one after the other."""
    colours = {"src_colorspace": "ITU601", "dst_colorspace": "ITU601"}
    with av.open(str(source)) as container:
        return np.stack([f.reformat(format="rgb24", **colours).to_ndarray() for f in container.decode(video=0)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def clip(folder):
    """60 frames in groups of 12, with B-frames and stereo sound; the index is at the end of the file."""
    codec = H264 if H264 in av.codecs_available else "mpeg4"
    return write_video(folder / "clip.mp4", pictures(60), codec, sound=tones(2.4), sc_threshold="0")


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


# Sound

SOUNDS = {  # codec, format and step of the samples
    "s16.wav": ("pcm_s16le", "s16", 2**-15),
    "u8.wav": ("pcm_u8", "u8", 2**-7),
    "s24.wav": ("pcm_s24le", "s32", 2**-23),
    "float.wav": ("pcm_f32le", "flt", 2**-24),
    "double.wav": ("pcm_f64le", "dbl", 2**-24),
    "s16.flac": ("flac", "s16", 2**-15),
    "s24.flac": ("flac", "s32", 2**-23),
    "s16.mov": ("pcm_s16le", "s16", 2**-15),
    "s16.mkv": ("pcm_s16le", "s16", 2**-15),
}


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("name", SOUNDS)
def test_lossless_sound_is_the_mean_of_its_channels(name, channels, tmp_path):
    codec, sample_format, step = SOUNDS[name]
    sound = tones(0.2, channels=channels)
    waveform = read_audio(write_sound(tmp_path / name, sound, codec, sample_format), RATE)
    assert (waveform.shape, waveform.dtype) == ((sound.shape[1],), np.float32)
    np.testing.assert_allclose(waveform, sound.mean(axis=0), atol=step)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("aac", "m4a"), ("aac", "mkv"), ("aac", "aac"), ("libmp3lame", "mp3"), ("libopus", "webm")]
)
def test_lossy_sound_is_close(codec, suffix, tmp_path):
    path = write_sound(tmp_path / f"tone.{suffix}", tones(rate=48000, channels=1), codec, rate=48000)
    waveform = read_audio(path, 48000)
    assert 48000 <= len(waveform) <= 48000 + 3 * 1152
    middle = waveform[4800:43200]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440 * 0.8  # over 0.8 s
    assert np.sqrt(np.square(middle).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize(("native", "rate"), [(44100, 16000), (48000, 16000), (8000, 16000), (16000, 44100)])
def test_resampling_keeps_a_tone_in_its_place(native, rate, tmp_path):
    tone = tones(0.5, native, channels=1)
    waveform = read_audio(write_sound(tmp_path / "tone.wav", tone, "pcm_f32le", "flt", native), rate)
    assert waveform.shape == (rate // 2,)
    np.testing.assert_allclose(waveform[200:-200], tones(0.5, rate, channels=1)[0, 200:-200], atol=1e-4)


def test_resampling_removes_what_the_new_rate_cannot_hold(tmp_path):
    path = write_sound(tmp_path / "tone.wav", tones(0.5, frequency=11000, channels=1), "pcm_f32le", "flt")
    assert np.abs(read_audio(path, 16000)[200:-200]).max() < 1e-3
    assert np.abs(read_audio(path, RATE)).max() > 0.49


def test_the_default_track_is_read(tmp_path):
    with av.open(str(tmp_path / "two.mka"), "w") as container:
        tracks = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        tracks[0].disposition, tracks[1].disposition = 0, av.stream.Disposition.default.value
        for track, level in zip(tracks, (0.25, 0.5), strict=True):
            encode_sound(container, track, np.full((1, 4096), level, np.float32))
    assert (read_audio(tmp_path / "two.mka", RATE) == 0.5).all()


@pytest.mark.parametrize("length", [1, 2, 30, 441, 4097])
def test_resampling_loses_no_samples(length, tmp_path):
    path = write_sound(tmp_path / "short.wav", np.ones((1, length), np.float32))
    for rate in (8000, 16000, 48000, 96000):
        assert len(read_audio(path, rate)) == -(-length * rate // RATE)


@pytest.mark.parametrize(
    ("name", "rate", "length"), [("audio1", 44100, 195584), ("audio2", 48000, 707745), ("audio2", 16000, 235915)]
)
def test_real_sounds_are_whole(name, rate, length, real_media):
    assert len(read_audio(real_media / "audios" / f"{name}.mp3", rate)) == length  # audio1 is an MP4 file


# Sources


def test_a_clip_is_read_from_path_content_and_file_object(clip, tmp_path):
    frames, waveform, content = read_video(clip, 4), read_audio(clip, 16000), clip.read_bytes()
    misnamed = tmp_path / "clip.txt"
    misnamed.write_bytes(content)
    with clip.open("rb") as file:
        file.seek(1000)
        for source in (str(clip), misnamed, content, io.BytesIO(content), file):
            np.testing.assert_array_equal(read_video(source, 4), frames)
            np.testing.assert_array_equal(read_audio(source, 16000), waveform)
        assert not file.closed
    np.testing.assert_array_equal(read_video(Pipe(content), 4), frames)
    with pytest.raises(TypeError, match="binary mode"), clip.open(errors="replace") as file:
        read_video(file, 1)
    with pytest.raises(TypeError, match="not int"):
        read_audio(3, 16000)


class Clips:
    def __init__(self, *paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        frames, waveform = read_video(self.paths[index], 2), read_audio(self.paths[index], 16000)
        return [int(frames.sum()), float(waveform.sum())]


def test_workers_and_threads_read_the_same(clip, tmp_path):
    other = write_video(tmp_path / "other.mp4", pictures(40)[::-1], "mpeg4", sound=tones(1))
    clips = Clips(*[clip, other] * 4)
    here = [clips[index] for index in range(8)]  # this process has used FFmpeg before it forks
    assert here[0] != here[1]
    assert list(DataLoader(clips, batch_size=None, num_workers=2, multiprocessing_context="fork")) == here
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(clips.__getitem__, range(8))) == here


def test_errors_travel_between_processes():
    with pytest.raises(MediaError) as caught:
        read_video(b"", 8)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed in /proc")
def test_no_file_is_left_open(clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:2000])
    before = len(os.listdir("/proc/self/fd"))
    for read in (read_video, read_audio):
        read(clip, 8)
        with pytest.raises(MediaError):
            read(broken, 8)
    assert len(os.listdir("/proc/self/fd")) == before


def test_import_does_not_load_ffmpeg():
    code = f"import runpy, sys; runpy.run_path({media.__file__!r}); sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# What is wrong


def test_a_missing_file_is_named(tmp_path):
    for read in (read_video, read_audio):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4: there is no such file; check the path"):
            read(tmp_path / "nowhere.mp4", 8)
        with pytest.raises(MediaError, match="cannot be read"):
            read(tmp_path, 8)


@pytest.mark.parametrize("read", [read_video, read_audio])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"\x1a\x45\xdf\xa3", "not a media file"),
        (b"hello world\n" * 200, "not a media file"),
        (bytes(5000), "not a media file"),
        (np.random.default_rng(0).bytes(20000), "not a media file"),
    ],
    ids=["empty", "four bytes", "text", "zeros", "noise"],
)
def test_what_is_no_media_file_says_so(read, content, problem, tmp_path):
    for name in ("thing.mp4", "thing.mp3", "thing.txt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=rf"^{tmp_path}/{name}: {problem}"):
            read(tmp_path / name, 8)
    with pytest.raises(MediaError, match=f"^<bytes>: {problem}"):
        read(content, 8)
    with pytest.raises(MediaError, match=f"^<BytesIO>: {problem}"):
        read(io.BytesIO(content), 8)


def flac_with_cover(path):
    """FLAC with a picture, which FFmpeg lists as a video stream."""
    data = write_sound(path, tones(0.2), "flac").read_bytes()
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    fields = [3, 9, b"image/png", 0, 8, 8, 24, 0, len(png.getvalue()), png.getvalue()]
    block = b"".join(field if isinstance(field, bytes) else field.to_bytes(4, "big") for field in fields)
    start = 4 + 4 + 34  # the marker and the first block
    path.write_bytes(data[:start] + b"\x06" + len(block).to_bytes(3, "big") + block + data[start:])
    return path


def test_what_the_file_does_not_hold_is_named(tmp_path):
    with pytest.raises(MediaError, match=r"sound\.m4a: it holds no video \(but audio\)"):
        read_video(write_sound(tmp_path / "sound.m4a", tones(0.2), "aac"), 1)
    with pytest.raises(MediaError, match=r"silent\.mkv: it holds no audio \(but video\)"):
        read_audio(write_video(tmp_path / "silent.mkv", pictures(3), "mpeg4"), 16000)
    cover = flac_with_cover(tmp_path / "cover.flac")
    with av.open(str(cover)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(MediaError, match=r"cover\.flac: it holds no video \(but audio\)"):
        read_video(cover, 1)
    assert len(read_audio(cover, RATE)) == 0.2 * RATE
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
    with pytest.raises(MediaError, match=r"empty\.wav: .* no samples"):
        read_audio(tmp_path / "empty.wav", 16000)


def test_an_unknown_codec_is_named_as_such(tmp_path):
    data = write_video(tmp_path / "clip.avi", pictures(5), "mpeg4", b_frames=0).read_bytes()
    with pytest.raises(MediaError, match="FFmpeg has no decoder for its video"):
        read_video(data.replace(b"FMP4", b"????"), 1)


@pytest.mark.parametrize(("codec", "suffix"), [(H264, "mp4"), ("mpeg4", "avi")])
def test_more_frames_than_there_are_name_both_numbers(codec, suffix, tmp_path):
    path = write_video(tmp_path / f"short.{suffix}", pictures(5), codec, b_frames=0)
    assert len(read_video(path, 5)) == 5
    with pytest.raises(MediaError, match=rf"short\.{suffix}: 8 frames .* 5;"):
        read_video(path, 8)
    with pytest.raises(ValueError, match="sampling rate of 0"):
        read_audio(path, 0)


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_clip_that_was_cut_short_is_an_error(suffix, fraction, folder):
    path = folder / f"whole.{suffix}"
    if not path.exists():
        write_video(path, pictures(60), "mpeg4", b_frames=0, sound=tones(2.4))
    data = path.read_bytes()
    for read in (read_video, read_audio):
        read(data, 16)
        with pytest.raises(MediaError, match="cut short"):
            read(data[: int(len(data) * fraction)], 16)


@pytest.mark.parametrize("codec", [H264, "mpeg4"])
def test_a_cut_clip_says_how_many_frames_are_left(codec, tmp_path):
    path = write_video(tmp_path / "clip.mp4", pictures(60), codec, movflags="faststart")
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    for end, left in ((ends[36], 37), (ends[36] - 1, 36), (ends[-1] - 1, 59)):
        with pytest.raises(MediaError, match=f"only {left} of its 60 frames can be read"):
            read_video(data[:end], 2)


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("pcm_s16le", "wav"), ("flac", "flac"), ("libmp3lame", "mp3"), ("aac", "m4a"), ("libopus", "webm")],
)
def test_sound_that_was_cut_short_is_an_error(codec, suffix, fraction, folder):
    path = folder / f"sound.{suffix}"
    if not path.exists():
        write_sound(path, tones(2, 48000), codec, rate=48000, movflags="faststart")
    data = path.read_bytes()
    assert len(read_audio(data, 48000)) >= 96000
    with pytest.raises(MediaError, match="cut short"):
        read_audio(data[: int(len(data) * fraction)], 16000)


@pytest.mark.parametrize(
    ("format", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("matroska", "aac"), ("mp3", "libmp3lame")]
)
def test_a_stream_that_does_not_say_how_long_it_is_is_read(format, codec):
    sound = write_sound(Pipe(), tones(0.5), codec, format=format)
    assert len(read_audio(sound.getvalue(), RATE)) >= RATE // 2
    video = write_video(Pipe(), pictures(20), "mpeg4", format="matroska")
    assert len(read_video(video.getvalue(), 20)) == 20


@pytest.mark.parametrize("start", [0, 20])  # the decoder stops at the one, and hides the other as best it can
def test_damage_is_an_error_where_it_is_needed(start, clip):
    need(H264)
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.is_keyframe][2]  # of five
    for place in range(packet.pos + start, packet.pos + packet.size):
        data[place] ^= 0xFF
    with pytest.raises(MediaError, match=r"only \d+ of its 60 frames can be decoded; it is damaged"):
        read_video(bytes(data), 60)
    np.testing.assert_array_equal(read_video(bytes(data), 2), read_video(clip, 2))  # in the second and fourth


@pytest.mark.parametrize(("codec", "suffix"), [("flac", "flac"), ("aac", "m4a")])
def test_damaged_sound_is_an_error(codec, suffix, tmp_path):
    data = bytearray(write_sound(tmp_path / f"sound.{suffix}", tones(), codec).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = np.random.default_rng(0).bytes(1000)
    with pytest.raises(MediaError, match=r"only \d+ .*samples .*it is damaged"):
        read_audio(bytes(data), 16000)


def test_sound_that_changes_its_rate_is_an_error(tmp_path):
    parts = [write_sound(tmp_path / f"{rate}.aac", tones(1, rate), "aac", rate=rate) for rate in (44100, 22050)]
    with pytest.raises(MediaError, match=r"sampling rate changes .*22050, 44100"):
        read_audio(b"".join(part.read_bytes() for part in parts), 16000)


def test_mp3_may_count_the_packet_with_the_count(tmp_path):
    data = bytearray(write_sound(tmp_path / "sound.mp3", tones(), "libmp3lame").read_bytes())
    count = max(data.find(tag) for tag in (b"Info", b"Xing")) + 11
    data[count] += 1
    assert len(read_audio(bytes(data), RATE)) >= RATE
    data[count] += 1
    with pytest.raises(MediaError, match="packets of sound can be read"):
        read_audio(bytes(data), RATE)


def test_tags_in_any_encoding_are_read_over(tmp_path):
    data = write_sound(tmp_path / "sound.wav", tones(0.1)).read_bytes()
    title = b"LIST\x10\0\0\0INFOINAM\x04\0\0\0" + "éèü".encode("latin-1") + b"\0"
    assert len(read_audio(data[:12] + title + data[12:], RATE)) == 0.1 * RATE
