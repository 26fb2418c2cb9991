"""Frames and waveforms from media files. PyAV (FFmpeg) is imported on first use; what is not whole is an error."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np


if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_MATROSKA = "matroska,webm"
# In these containers a packet of these codecs is a frame: frames can be counted and chosen undecoded. Elsewhere only
# decoding tells: VP8 has hidden frames, MPEG-4 frames that are not coded, MPEG-TS single fields, AVI no timestamps.
_COUNTABLE_CODECS = {"h264", "hevc", "vp9", "av1", "libdav1d"}

_FETCH_AGAIN = "it is damaged or was cut short: fetch or encode it again"


class MediaError(ValueError):
    """A media file cannot be read as asked; the message names it, says what is wrong and what to do."""


def sample_frame_indices(total_frames: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """
    Choose frames spread evenly over a clip: one of each of `num_frames` segments of nearly equal length.

    Args:
        total_frames: frames of the clip.
        num_frames: frames to choose.
        rng (*optional*): choose at random within each segment. Without it the middle frame is chosen, of an even
            number the earlier of the two.

    Returns:
        int64 `[num_frames]`, increasing.

    Raises:
        ValueError: if `num_frames` is below 1 or above `total_frames`.
    """
    if num_frames < 1:
        raise ValueError(f"{num_frames} frames were asked for; ask for 1 or more.")
    if total_frames < num_frames:
        raise ValueError(f"{num_frames} frames were asked of a clip of {total_frames}; ask for fewer frames.")
    segments = np.array_split(np.arange(total_frames), num_frames)
    return np.array([s[(len(s) - 1) // 2] if rng is None else rng.choice(s) for s in segments])


def read_video(
    source: str | os.PathLike | bytes | BinaryIO, num_frames: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """
    Read frames spread evenly over a clip, see [`sample_frame_indices`]. Only what these frames need is decoded.

    Args:
        source: path, content, or binary file object, which is read from its start and left open; or a dict of `bytes`
            or `path`, as `datasets` gives it undecoded. The format is told by
            the content, whatever the name.
        num_frames: frames to read.
        rng (*optional*): choose the frames at random, one per segment.

    Returns:
        uint8 RGB `[num_frames, height, width, 3]`, turned upright if the file says that it lies on its side. Colours
        are converted by BT.601 whatever the file says, as OpenCV does.

    Raises:
        FileNotFoundError: if there is no such file.
        MediaError: if it is not a media file, holds no video or fewer frames, is damaged or was cut short.
    """
    with _binary_file(source) as (file, name):
        with _open_media(file, name) as media:
            stream = media.stream("video")
            if packets := _countable_packets(media, stream):
                shown = sorted(packet.pts for packet in packets if packet.shown)
                wanted = [shown[index] for index in _choose(media, len(shown), num_frames, rng)]
                return _to_rgb(media, _decode_chosen(media, stream, packets, wanted))
        with _open_media(file, name) as media:
            total = sum(1 for _ in _decode_all(media))
        with _open_media(file, name) as media:
            chosen = set(_choose(media, total, num_frames, rng).tolist())
            return _to_rgb(media, [frame for index, frame in enumerate(_decode_all(media)) if index in chosen])


def read_audio(source: str | os.PathLike | bytes | BinaryIO, sampling_rate: int) -> np.ndarray:
    """
    Read a sound file or the sound track of a video as one channel: the mean of all channels, then resampled.

    Args:
        source: path, content, or binary file object, which is read from its start and left open; or a dict of `bytes`
            or `path`, as `datasets` gives it undecoded. The format is told by
            the content, whatever the name.
        sampling_rate: of the result, in Hz.

    Returns:
        float32 `[samples]`, full scale is 1.

    Raises:
        FileNotFoundError: if there is no such file.
        MediaError: if it is not a media file, holds no sound, is damaged or was cut short.
    """
    if sampling_rate < 1:
        raise ValueError(f"A sampling rate of {sampling_rate} Hz was asked for; ask for 1 or more.")
    with _binary_file(source) as (file, name), _open_media(file, name) as media:
        stream = media.stream("audio")
        packets = list(media.container.demux(stream))
        waveform, native_rate = _decode_mono(media, stream, packets)
        _check_sound_length(media, stream, sum(packet.size > 0 for packet in packets), len(waveform))
        return waveform if native_rate == sampling_rate else _resample(waveform, native_rate, sampling_rate)


@dataclass
class _Media:
    """An open media file."""

    name: str
    file: BinaryIO
    size: int
    container: InputContainer

    def error(self, problem: str) -> MediaError:
        return MediaError(f"{self.name}: {problem}.")

    def stream(self, kind: str) -> VideoStream | AudioStream:
        """The default stream of a kind, "video" (a cover picture is none) or "audio"."""
        from av.stream import Disposition

        streams = [stream for stream in self.container.streams if not stream.disposition & Disposition.attached_pic]
        found = ", ".join(sorted({str(stream.type) for stream in streams})) or "nothing"
        streams = [stream for stream in streams if stream.type == kind]
        if not streams:
            raise self.error(f"it holds no {kind} (but {found}); name another file or leave {kind} out for this one")
        stream = min(streams, key=lambda stream: not stream.disposition & Disposition.default)
        if stream.codec_context is None:
            raise self.error(f"FFmpeg has no decoder for its {kind}; encode it in a common format")
        # More threads are no faster at these sizes, and the workers of a DataLoader share the cores.
        stream.codec_context.thread_count = 1
        self.check_index(stream)
        return stream

    def check_index(self, stream: VideoStream | AudioStream) -> None:
        """An MP4 says where each packet lies; none may lie beyond the end of the file."""
        if self.container.format.name == _MP4:
            entries = stream.index_entries
            present = sum(entry.pos + entry.size <= self.size for entry in entries)
            if present < len(entries):
                unit = "frames" if stream.type == "video" else "packets of sound"
                raise self.error(f"only {present} of its {len(entries)} {unit} can be read; {_FETCH_AGAIN}")


@contextlib.contextmanager
def _binary_file(source: str | os.PathLike | bytes | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """A seekable file object and the name for messages."""
    if isinstance(source, dict):  # an undecoded `Audio` or `Video` of `datasets`
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        yield io.BytesIO(source), "<bytes>"
    elif isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        try:
            with open(name, "rb") as file:
                yield file, name
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: there is no such file; check the path (from {os.getcwd()}).") from None
        except OSError as error:
            raise MediaError(f"{name}: cannot be read ({error.strerror}); check path and permissions.") from error
    elif hasattr(source, "read"):
        if not isinstance(source.read(0), bytes):
            raise TypeError(f"{source!r} gives text; open it in binary mode.")
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else f"<{type(source).__name__}>"
        yield source if source.seekable() else io.BytesIO(source.read()), name
    else:
        raise TypeError(f"A media source is a path, bytes or a binary file object, not {type(source).__name__}.")


@contextlib.contextmanager
def _open_media(file: BinaryIO, name: str) -> Iterator[_Media]:
    import av

    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise MediaError(f"{name}: the file is empty; fetch or encode it again.")
    declared = _declared_size(_read_at(file, 0, 64))
    if declared is not None and size < declared:
        raise MediaError(f"{name}: the file has {size} of the {declared} bytes it should have; {_FETCH_AGAIN}.")
    file.seek(0)
    unnamed = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)  # or the name's extension counts
    try:
        with av.open(unnamed, metadata_errors="replace") as container:
            yield _Media(name, file, size, container)
    except av.FFmpegError as error:
        raise MediaError(f"{name}: not a media file, or {_FETCH_AGAIN} ({error.strerror}).") from error


def _read_at(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _declared_size(head: bytes) -> int | None:
    """The size that a RIFF (wav, avi) or Matroska (mkv, webm) file gives itself; None if none, as when streamed."""
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")  # some writers count these 8 bytes, some do not
        return size if size < 0x7FFF0000 else None
    if head[:4] == b"\x1a\x45\xdf\xa3":
        length, start = _matroska_number(head, 4)
        identifier, start = head[start + length :][:4], start + length + 4
        length, end = _matroska_number(head, start)
        if identifier == b"\x18\x53\x80\x67" and length != (1 << 7 * (end - start)) - 1:
            return end + length
    return None


def _matroska_number(data: bytes, start: int) -> tuple[int, int]:
    """A number that starts with as many zero bits as bytes follow its first, and where it ends."""
    end = start + 9 - int.from_bytes(data[start : start + 1], "big").bit_length()
    return int.from_bytes(data[start:end], "big") & ((1 << 7 * (end - start)) - 1), end


class _Packet(NamedTuple):
    pts: int
    is_keyframe: bool
    shown: bool


def _countable_packets(media: _Media, stream: VideoStream) -> list[_Packet] | None:
    """The packets in decoding order, not decoded; None where they do not tell what frames there are."""
    if media.container.format.name not in (_MP4, _MATROSKA) or stream.codec_context.name not in _COUNTABLE_CODECS:
        return None
    packets = [_Packet(p.pts, p.is_keyframe, not p.is_discard) for p in media.container.demux(stream) if p.size]
    times = {packet.pts for packet in packets}
    regular = packets and None not in times and len(times) == len(packets)
    return packets if regular and packets[0].is_keyframe and packets[0].pts == min(times) else None


def _choose(media: _Media, total: int, num_frames: int, rng: np.random.Generator | None) -> np.ndarray:
    try:
        return sample_frame_indices(total, num_frames, rng)
    except ValueError as error:
        raise MediaError(f"{media.name}: {error}") from error


def _decode_chosen(media: _Media, stream: VideoStream, packets: list[_Packet], wanted: list[int]) -> list[VideoFrame]:
    """The frames with these timestamps."""
    everything = dict.fromkeys((packet.pts for packet in packets), 0)
    # The second attempt is for keyframes that cannot be decoded by themselves (x264's intra-refresh).
    for runs, needed in (_plan_runs(packets, wanted), set(wanted)), (everything, everything):
        found, count = dict.fromkeys(wanted), 0
        for frame in _decode_runs(media, stream, runs, needed):
            if frame.is_corrupt:
                break
            count += 1
            if frame.pts in found:
                found[frame.pts] = frame
        if None not in found.values():
            return list(found.values())
    total = sum(packet.shown for packet in packets)
    raise media.error(f"only {count} of its {total} frames can be decoded; {_FETCH_AGAIN}")


def _plan_runs(packets: list[_Packet], wanted: list[int]) -> dict[int, int]:
    """What to decode: `{pts: run}`, a run being the packets from a keyframe to the last wanted one that needs it."""
    position = {packet.pts: index for index, packet in enumerate(packets)}
    runs: dict[int, int] = {}
    run, reached = -1, -1
    for pts in wanted:
        start = end = position[pts]
        # A keyframe that is shown after the wanted frame does not serve it, even if it comes before it in the file.
        while start > reached and not (packets[start].is_keyframe and packets[start].pts <= pts):
            start -= 1
        if start > reached:
            run += 1
        runs |= {packet.pts: run for packet in packets[start : end + 1]}
        reached = max(reached, end)
    return runs


def _decode_runs(
    media: _Media, stream: VideoStream, runs: dict[int, int], needed: Container[int]
) -> Iterator[VideoFrame]:
    """The frames of the packets of `runs`, up to the first that cannot be decoded."""
    import av

    context, run = stream.codec_context, 0
    media.container.seek(-(1 << 40), stream=stream)  # back to the start
    with contextlib.suppress(av.FFmpegError):
        for packet in media.container.demux(stream):
            if packet.pts not in runs:
                continue
            if runs[packet.pts] != run:
                yield from context.decode(None)
                context.flush_buffers()
                run = runs[packet.pts]
            if context.name == "h264":  # only here no frame at all refers to those that are marked so
                context.skip_frame = "DEFAULT" if packet.pts in needed else "NONREF"
            yield from context.decode(packet)
        yield from context.decode(None)


def _decode_all(media: _Media) -> Iterator[VideoFrame]:
    import av

    stream, count = media.stream("video"), 0
    try:
        for frame in media.container.decode(stream):
            if frame.is_corrupt:
                raise media.error(f"only {count} of its frames can be decoded; {_FETCH_AGAIN}")
            yield frame
            count += 1
    except av.FFmpegError as error:
        raise media.error(f"only {count} of its frames can be decoded ({error.strerror}); {_FETCH_AGAIN}") from error


def _to_rgb(media: _Media, frames: list[VideoFrame]) -> np.ndarray:
    from av.video.reformatter import Colorspace, VideoReformatter

    reformatter, images = VideoReformatter(), []
    for frame in frames:
        # One thread is twice as fast as FFmpeg's choice for frames of this size.
        rgb = reformatter.reformat(
            frame, format="rgb24", src_colorspace=Colorspace.ITU601, dst_colorspace=Colorspace.ITU601, threads=1
        )
        images.append(np.rot90(rgb.to_ndarray(), round(frame.rotation / 90)))
    if len({image.shape for image in images}) > 1:
        raise media.error("the size of its frames changes on the way; encode it in one size")
    return np.stack(images)


def _decode_mono(media: _Media, stream: AudioStream, packets: list[Packet]) -> tuple[np.ndarray, int]:
    """float32 `[samples]` at the file's own rate, and that rate in Hz."""
    import av

    chunks, rates = [], set()
    try:
        for packet in packets:
            for frame in stream.decode(packet):
                chunks.append(_mean_of_channels(frame))
                rates.add(frame.sample_rate)
    except av.FFmpegError as error:
        samples = sum(map(len, chunks))
        raise media.error(f"only {samples} samples of its sound can be decoded; {_FETCH_AGAIN}") from error
    if not any(map(len, chunks)):
        raise media.error("its sound track holds no samples; name another file or leave audio out for this one")
    if len(rates) > 1:
        raise media.error(f"its sampling rate changes on the way ({sorted(rates)} Hz); encode it at one rate")
    return np.concatenate(chunks), rates.pop()


def _mean_of_channels(frame: AudioFrame) -> np.ndarray:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "f":
        return samples.mean(axis=0, dtype=np.float32)
    full_scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
    offset = full_scale if samples.dtype.kind == "u" else 0.0
    return ((samples.mean(axis=0) - offset) / full_scale).astype(np.float32)


def _check_sound_length(media: _Media, stream: AudioStream, packets: int, samples: int) -> None:
    """A FLAC file may say how many samples it has, an MP3 file how many packets."""
    if media.container.format.name == "flac":
        present, declared, unit = samples, stream.duration, "samples"
    elif media.container.format.name == "mp3":
        # The packet with the tag is not read; some writers count it.
        present, declared, unit = packets + 1, _declared_mp3_packets(media.file), "packets of sound"
    else:
        return
    if declared is not None and present < declared:
        raise media.error(f"only {present} of its {declared} {unit} can be read; {_FETCH_AGAIN}")


def _declared_mp3_packets(file: BinaryIO) -> int | None:
    """What the Xing or Info tag in the first frame says; None without such a tag."""
    head = _read_at(file, 0, 10)
    tags = 0
    if head[:3] == b"ID3":
        tags = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))
    frame = _read_at(file, tags, 48)
    start = max(frame.find(tag, 0, 40) for tag in (b"Xing", b"Info"))
    if start == -1 or not frame[start + 7] & 1:
        return None
    return int.from_bytes(frame[start + 8 : start + 12], "big")


def _resample(waveform: np.ndarray, native_rate: int, sampling_rate: int) -> np.ndarray:
    import av

    # The filter looks ahead: silence after the end brings out the last samples. (Flushing loses some of short sounds.)
    silence = np.zeros(64 * (native_rate // sampling_rate + 1), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(np.concatenate([waveform, silence])[None], format="fltp", layout="mono")
    frame.sample_rate = native_rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=sampling_rate)
    resampled = np.concatenate([frame.to_ndarray()[0] for frame in resampler.resample(frame)])
    return resampled[: math.ceil(len(waveform) * sampling_rate / native_rate)]
