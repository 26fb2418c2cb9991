"""The embedded default data: small made clips whose captions tell what is seen *and* what is heard.

Every clip is a real mp4 file: one coloured shape in motion (H.264 where PyAV has it, else MPEG-4) under one sound
(AAC). Three attributes are seen, three are heard, all drawn independently, so neither the picture nor the sound alone
tells which caption belongs to a clip. Motions are told apart by *where* the shape is seen and not by the order of the
frames, so a model that averages its frames can tell them too.
"""

import itertools
import json
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import ceil, cos, pi, sin, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from datasets import DatasetDict

FORMAT_VERSION = 1  # part of the cache name: raise it with every change that alters what is written
FRAME_SIZE = 64  # pixels, both sides
FRAME_RATE = 8  # frames per second
SAMPLE_RATE = 16_000  # sound samples per second, mono
DURATION = 2.0  # seconds
NUM_FRAMES = int(DURATION * FRAME_RATE)
NUM_SAMPLES = int(DURATION * SAMPLE_RATE)
FADE = 0.012  # seconds in which a note comes and goes: shorter ones click
HIGHEST_PARTIAL = 7600.0  # Hz: overtones are faded out below the Nyquist frequency
CAPTIONS_PER_CLIP = {"train": 3, "test": 1}

SEEN = ("shape", "colour", "motion")
HEARD = ("pitch", "timbre", "rhythm")

# attribute -> value -> the words for it in captions. A word stands for one value only.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "shape": {
        "circle": ("circle", "disc", "ball"),
        "square": ("square", "box"),
        "triangle": ("triangle", "wedge"),
        "star": ("star", "five-pointed star"),
        "ring": ("ring", "hoop"),
        "cross": ("cross", "plus sign"),
    },
    "colour": {
        "red": ("red", "crimson"),
        "yellow": ("yellow", "golden"),
        "green": ("green", "emerald"),
        "blue": ("blue", "azure"),
        "purple": ("purple", "violet"),
        "white": ("white", "ivory"),
    },
    "motion": {
        "horizontal": ("sideways", "from side to side", "left and right"),
        "vertical": ("up and down", "vertically"),
        "diagonal": ("diagonally", "from corner to corner"),
        "depth": ("toward us and back", "nearer and farther away"),
    },
    "pitch": {
        "low": ("low", "deep"),
        "medium": ("medium", "mid-range"),
        "high": ("high", "shrill"),
    },
    "timbre": {
        "pure": ("pure", "clean"),
        "buzz": ("buzzing", "raspy"),
        "hiss": ("hissing", "noisy"),
        "bell": ("bell-like", "chiming"),
    },
    "rhythm": {
        "long": ("long", "sustained"),
        "slow": ("slow", "unhurried"),
        "fast": ("fast", "rapid"),
        "rising": ("rising", "climbing"),
    },
}

TEMPLATES = (
    "{thing} moves {motion} to the sound of {sound}",
    "{thing} moving {motion} with {sound} in the background",
    "{thing} drifts {motion} while we hear {sound}",
    "{thing} glides {motion} and {sound} can be heard",
    "a clip of {thing} floating {motion} over {sound}",
    "watch {thing} move {motion} and listen to {sound}",
    "{sound} can be heard as {thing} moves {motion}",
    "{sound} and {thing} moving {motion}",
    "we hear {sound} while {thing} drifts {motion}",
    "to the sound of {sound}, {thing} glides {motion}",
    "with {sound} in the background, {thing} floats {motion}",
    "listen to {sound} and watch {thing} move {motion}",
)

COLOURS = {
    "red": (232, 56, 54),
    "yellow": (252, 208, 48),
    "green": (62, 186, 88),
    "blue": (52, 124, 246),
    "purple": (182, 72, 222),
    "white": (246, 243, 234),
}
MOTIONS = {"horizontal": (1, 0, 0), "vertical": (0, 1, 0), "diagonal": (1, 1, 0), "depth": (0, 0, 1)}  # x, y, size
PITCHES = {"low": 200.0, "medium": 560.0, "high": 1600.0}  # Hz
NOTES = {"long": (1, 1.7), "slow": (3, 0.38), "fast": (9, 0.11), "rising": (1, 1.7)}  # how many, seconds each
RISE = 1.8  # last over first frequency of a rising tone: less than from one pitch to the next
BELL_PARTIALS = ((1.0, 1.0), (2.76, 0.7), (5.4, 0.5))  # frequency ratio, strength


def load_sample_clips(
    num_train: int = 1536, num_test: int = 256, seed: int = 0, cache_dir: str | None = None
) -> "DatasetDict":
    """Load the sample clips; the first call makes them (about 15 seconds on two cores), later ones read the cache.

    Each clip lasts 2 s: 16 frames of 64x64 pixels, 16 kHz mono sound. The splits "train" and "test" have the columns
    `id`, `text` (list of captions: 3 in train, 1 in test), `video` and `audio` (absolute path of the same mp4 file),
    `label` (the colour) and the attributes `shape`, `colour`, `motion`, `pitch`, `timbre`, `rhythm`.

    The test split is a grid: about sqrt(num_test) looks, each with the same about sqrt(num_test) sounds. All clips
    differ in their attributes. No combination of the test split is in the training split, whose clips use all looks
    and all sounds equally often, as far as their number allows.

    Args:
        num_train: number of training clips, at least 1.
        num_test: number of test clips, at least 1; together with `num_train` at most 6912, the number of combinations.
        seed: the same seed gives the same captions and, on the same machine, the same bytes.
        cache_dir: where the folder with the clips goes; default `$HF_HOME/transformers_gram/sample_clips`.

    Raises:
        ValueError: a count or the seed is out of range.
    """
    from datasets import Dataset, DatasetDict
    from filelock import FileLock
    from huggingface_hub.constants import HF_HOME

    num_combinations = len(_combinations(SEEN)) * len(_combinations(HEARD))
    if num_train < 1 or num_test < 1 or num_train + num_test > num_combinations:
        raise ValueError(
            f"num_train={num_train}, num_test={num_test}: both must be at least 1, and together at most "
            f"{num_combinations}, the number of attribute combinations."
        )
    if seed < 0:
        raise ValueError(f"seed={seed}: must be 0 or more.")

    parent = Path(cache_dir) if cache_dir else Path(HF_HOME) / "transformers_gram" / "sample_clips"
    folder = parent.expanduser().absolute() / f"v{FORMAT_VERSION}-train{num_train}-test{num_test}-seed{seed}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():  # another process may have written it while this one waited
                _write_clips(folder, _make_rows(num_train, num_test, seed), seed)

    splits: dict[str, list[dict]] = {"train": [], "test": []}
    with open(folder / "metadata.jsonl", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            row["video"] = row["audio"] = str(folder / row["video"])
            splits[row.pop("split")].append(row)
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


def _combinations(attributes: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(itertools.product(*(WORDS[attribute] for attribute in attributes)))


def _make_rows(num_train: int, num_test: int, seed: int) -> list[dict]:
    """The rows of both splits, with the path of the clip relative to the folder."""
    rng = np.random.default_rng(seed)
    test = _choose_test(num_test, rng)
    pairs = {"train": _choose_train(num_train, set(test), rng), "test": test}
    rows = []
    for split, chosen in pairs.items():
        for index, (look, sound) in enumerate(chosen):
            attributes = dict(zip(SEEN + HEARD, look + sound, strict=True))
            rows.append(
                {
                    "split": split,
                    "id": f"{split}-{index:04d}",
                    "text": _captions(attributes, CAPTIONS_PER_CLIP[split], rng),
                    "video": f"{split}/{index:04d}.mp4",
                    "audio": f"{split}/{index:04d}.mp4",
                    "label": attributes["colour"],
                    **attributes,
                }
            )
    return rows


def _choose_test(count: int, rng: np.random.Generator) -> list[tuple]:
    """(look, sound) pairs of a grid that is as square as `count` allows; its last row may be shorter."""
    looks, sounds = _combinations(SEEN), _combinations(HEARD)
    width = min(ceil(sqrt(count)), len(sounds))
    usage: Counter = Counter()
    looks = [_pick_least_used(looks, usage, rng) for _ in range(ceil(count / width))]
    sounds = [_pick_least_used(sounds, usage, rng) for _ in range(width)]
    return list(itertools.product(looks, sounds))[:count]


def _choose_train(count: int, taken: set[tuple], rng: np.random.Generator) -> list[tuple]:
    """Distinct (look, sound) pairs outside `taken` that use all looks and all sounds about equally often."""
    free = {
        look: [sound for sound in _combinations(HEARD) if (look, sound) not in taken] for look in _combinations(SEEN)
    }
    usage: Counter = Counter()
    chosen = []
    for _ in range(count):
        look = _pick_least_used([look for look, sounds in free.items() if sounds], usage, rng)
        sound = _pick_least_used(free[look], usage, rng)
        free[look].remove(sound)
        chosen.append((look, sound))
    return chosen


def _pick_least_used(combinations: list[tuple], usage: Counter, rng: np.random.Generator) -> tuple:
    """The combination used least often so far; of several, one whose single values were used least."""
    ties = rng.random(len(combinations))
    best = min(
        range(len(combinations)),
        key=lambda i: (usage[combinations[i]], sum(usage[value] for value in combinations[i]), ties[i]),
    )
    usage.update((combinations[best], *combinations[best]))
    return combinations[best]


def _captions(attributes: dict[str, str], count: int, rng: np.random.Generator) -> list[str]:
    """Differently built captions, in lower case and without a full stop; each states all attributes."""
    captions = []
    for template in rng.choice(TEMPLATES, count, replace=False):
        word = {name: _choose(WORDS[name][value], rng) for name, value in attributes.items()}
        thing = _with_article(f"{word['colour']} {word['shape']}")
        sound = f"{word['rhythm']} {word['pitch']} {word['timbre']}"
        if NOTES[attributes["rhythm"]][0] > 1:
            sound = f"{sound} {_choose(('beeps', 'notes'), rng)}"
        else:
            sound = _with_article(f"{sound} {_choose(('tone', 'note'), rng)}")
        captions.append(str(template).format(thing=thing, motion=word["motion"], sound=sound))
    return captions


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _with_article(noun_phrase: str) -> str:
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def _write_clips(folder: Path, rows: list[dict], seed: int) -> None:
    """Fill a sibling folder and rename it when it is complete, so that `folder` never holds half of the clips."""
    from huggingface_hub.utils import tqdm

    unfinished = folder.with_name(f"{folder.name}.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a writer that was killed
    for split in CAPTIONS_PER_CLIP:
        (unfinished / split).mkdir(parents=True)

    def write(index: int) -> None:
        rng = np.random.default_rng([seed, index])
        row = rows[index]
        write_mp4(unfinished / row["video"], draw_frames(row, rng), play_sound(row, rng))

    # Threads are enough: the encoders and most of numpy run without the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(write, range(len(rows))), total=len(rows), desc="Making sample clips", unit="clip"))
    with open(unfinished / "metadata.jsonl", "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    os.rename(unfinished, folder)
    print(f"The sample clips are in {folder}", file=sys.stderr)


def draw_frames(attributes: dict[str, str], rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB frames [NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3] of one shape that swings once to and fro.

    The swing is widest at a quarter and at three quarters of the clip, where two evenly spread frames lie.
    """
    swing = np.sin(2 * pi * (np.arange(NUM_FRAMES) / NUM_FRAMES + rng.uniform(-0.07, 0.07)))
    # How far along x, y and size; the signs choose the direction and, of two, the diagonal.
    x, y, growth = np.outer(np.array(MOTIONS[attributes["motion"]]) * rng.choice([-1, 1], 3), swing)[..., None, None]
    middle, reach, tilt = FRAME_SIZE / 2 + rng.uniform(-3, 3, 2), rng.uniform(14, 17), rng.uniform(-0.2, 0.2)
    radius = rng.uniform(9.5, 12.5) * (1 + 0.4 * growth)

    rows, columns = np.mgrid[:FRAME_SIZE, :FRAME_SIZE] + 0.5
    across = (columns - middle[0] - reach * x) / radius
    down = (rows - middle[1] - reach * y) / radius
    across, down = across * cos(tilt) + down * sin(tilt), down * cos(tilt) - across * sin(tilt)
    distance = _signed_distance(attributes["shape"], across, down) * radius

    background = rng.uniform(28, 84) * rng.uniform(0.85, 1.15, 3) * (1.15 - 0.4 * rows / FRAME_SIZE)[..., None]
    shade = 1 - 0.12 * np.clip(down, -1, 1)[..., None]
    shape = np.array(COLOURS[attributes["colour"]]) * rng.uniform(0.88, 1.0) * shade
    shadow = 1 - 0.45 * np.exp(-(across**2 + down**2))[..., None]
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    return np.clip(cover * shape + (1 - cover) * background * shadow, 0, 255).astype(np.uint8)


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far the points (x, y) lie outside (inside: negative) of a shape of radius 1 around the origin."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.78) - 0.24
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86
    if shape == "cross":
        return np.maximum(np.maximum(np.abs(x), np.abs(y)) - 1, np.minimum(np.abs(x), np.abs(y)) - 0.3)
    if shape == "triangle":
        return np.maximum(y, np.abs(x) * cos(pi / 6) - y * sin(pi / 6)) - 0.6
    if shape == "star":
        # Every point is turned and mirrored into the sector between one tip, at (1.1, 0), and the notch beside it.
        angle = np.abs((np.arctan2(x, -y) + pi / 5) % (2 * pi / 5) - pi / 5)
        notch = np.array([0.46 * cos(pi / 5), 0.46 * sin(pi / 5)])
        normal = np.array([notch[1], 1.1 - notch[0]]) / np.hypot(notch[1], 1.1 - notch[0])
        return (np.hypot(x, y) * np.cos(angle) - 1.1) * normal[0] + np.hypot(x, y) * np.sin(angle) * normal[1]
    raise ValueError(f"unknown shape {shape!r}")


def play_sound(attributes: dict[str, str], rng: np.random.Generator) -> np.ndarray:
    """float32 sound [NUM_SAMPLES] at SAMPLE_RATE, its peak between about 0.3 and 0.7, over a faint noise floor."""
    count, seconds = NOTES[attributes["rhythm"]]
    period = (DURATION - 0.2) / count * rng.uniform(0.97, 1.03)
    time = np.arange(NUM_SAMPLES) / SAMPLE_RATE - rng.uniform(0.03, 0.12)
    in_note = time % period
    fade = np.clip(np.minimum(in_note, seconds - in_note) / FADE, 0, 1) * (time >= 0) * (time < count * period)

    frequency = PITCHES[attributes["pitch"]] * 2 ** (rng.uniform(-1.2, 1.2) / 12) * np.ones(NUM_SAMPLES)
    if attributes["rhythm"] == "rising":
        frequency *= RISE ** np.clip(time / seconds, 0, 1)
    tone = _tone(attributes["timbre"], frequency, in_note / seconds, rng) * np.sin(pi / 2 * fade) ** 2
    tone *= rng.uniform(0.3, 0.7) / np.abs(tone).max()
    return (tone + rng.uniform(0.001, 0.005) * rng.normal(size=NUM_SAMPLES)).astype(np.float32)


def _tone(timbre: str, frequency: np.ndarray, in_note: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An endless tone: `frequency` in Hz and `in_note` (0 where a note begins, 1 where it ends), one per sample."""
    cycles = np.cumsum(frequency) / SAMPLE_RATE + rng.random()

    def partial(ratio: float) -> np.ndarray:
        return np.sin(2 * pi * ratio * cycles) * np.clip((HIGHEST_PARTIAL - ratio * frequency) / 800, 0, 1)

    if timbre == "pure":
        return partial(1)
    if timbre == "buzz":
        return sum(partial(k) / k for k in range(1, 11))
    if timbre == "bell":
        return sum(strength * partial(ratio) for ratio, strength in BELL_PARTIALS) * np.exp(-3.5 * in_note)
    if timbre == "hiss":
        # Two random strengths, drawn anew every cycle, on a carrier: a band of noise around the frequency.
        knots = np.arange(int(cycles[-1]) + 2)
        first, second = (np.interp(cycles, knots, rng.normal(size=knots.size)) for _ in range(2))
        return first * np.sin(2 * pi * cycles) + second * np.cos(2 * pi * cycles)
    raise ValueError(f"unknown timbre {timbre!r}")


def write_mp4(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    """Write an mp4 file, the same bytes every time.

    Args:
        path: where to; an existing file is overwritten.
        frames: uint8 RGB [F, H, W, 3] at FRAME_RATE.
        sound: float32 [S] at SAMPLE_RATE, within -1 and 1.
    """
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        # zerolatency: with its look-ahead, libx264 does not give the same bytes every time, not even in one thread.
        options = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
        video = container.add_stream(codec, rate=FRAME_RATE, options=options)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.bit_rate = 400_000  # for MPEG-4: H.264 goes by its crf
        # The other coder of AAC, the default, overshoots at the onset of notes by half of their height.
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
        audio.bit_rate = 48_000
        for stream in (video, audio):
            stream.codec_context.thread_count = 1
            stream.codec_context.flags |= av.codec.context.Flags.bitexact

        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        chunk = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        chunk.sample_rate, chunk.pts = SAMPLE_RATE, 0
        container.mux(audio.encode(chunk))
        container.mux(audio.encode(None))
