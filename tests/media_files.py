"""Media files for the tests, written with PyAV."""

import io

import av
import numpy as np
import pytest


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
