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
from media_files import H264, RATE, Pipe, need, pictures, tones, write_sound, write_video
from PIL import Image
from torch.utils.data import DataLoader

from transformers_gram import media
from transformers_gram.media import MediaError, read_audio, read_video


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
def test_a_clip_that_was_cut_short_is_an_error(suffix, fraction, media_folder):
    path = media_folder / f"whole.{suffix}"
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
def test_sound_that_was_cut_short_is_an_error(codec, suffix, fraction, media_folder):
    path = media_folder / f"sound.{suffix}"
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
