import av
import numpy as np
import pytest
from media_files import RATE, encode_sound, tones, write_sound

from transformers_gram.media import read_audio


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
