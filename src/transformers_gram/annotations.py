"""Annotation files (JSON, JSON lines, CSV) and folders of media to one table of clips, media undecoded."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


ID_COLUMNS = ("id", "video_id", "clip_id", "image_id")
CAPTION_COLUMNS = ("text", "caption", "captions", "desc")
MEDIA_COLUMNS = ("video", "depth", "audio")
VIDEO_EXTENSIONS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg")
AUDIO_EXTENSIONS = (".mp3", ".wav", ".m4a", ".flac", ".ogg", ".opus", ".aac")


class AnnotationError(ValueError):
    """A row or file of the annotations is wrong; the message names it."""


def load_annotations(
    annotation_file: str | Path,
    media_dirs: dict[str, str | Path] | None = None,
    modalities: Iterable[str] = ("text", "video", "audio"),
):
    """
    Read the clips of an annotation file.

    Every row needs an id (`id`, `video_id`, `clip_id` or `image_id`) and, for "text", a caption or a list of them
    (`text`, `caption`, `captions` or `desc`). Rows with the same id are captions of one clip. Media are named by the
    row in a column `video`, `depth` or `audio`, relative to the annotation file, or found by the id in a folder: the
    media file whose name without its extension is the id, case and all. Where no sounds are named and there is no
    folder of them, the videos' own sound tracks are used.

    Args:
        annotation_file: `.json` (a list of objects), `.jsonl` or `.csv`.
        media_dirs (`dict`, *optional*): folders by modality, e.g. `{"video": "clips/", "audio": "wav/"}`.
        modalities: what every row must have: any of "text", "subtitle", "video", "depth", "audio".

    Returns:
        [`datasets.Dataset`] with a column `id`, a column per modality (`text` is a list of captions; media are paths),
        and a column `label` where the rows have one.

    Raises:
        AnnotationError: for an unreadable file; a row without id, caption or subtitle; contradicting rows of one id;
            an id that fits several files, or media that are missing (all of them named at once).
    """
    from datasets import Dataset

    path = Path(annotation_file)
    modalities = list(dict.fromkeys(modalities))
    if unknown := set(modalities) - {"text", "subtitle", *MEDIA_COLUMNS}:
        known = ["text", "subtitle", *MEDIA_COLUMNS]
        raise AnnotationError(f"Annotations cannot hold the modalities {sorted(unknown)}; they know {known}.")
    folders = {name: _index_folder(Path(folder)) for name, folder in (media_dirs or {}).items() if folder}
    clips: dict[str, dict[str, Any]] = {}
    problems = []
    for number, row in enumerate(_read_rows(path), start=1):
        where = f"{path}, row {number}"
        clip = _parse_row(row, where, path.parent, modalities)
        _merge(clips, clip, where)
    for clip in clips.values():
        problems += _find_media(clip, folders, modalities)
    if problems:
        listed = "\n  ".join(problems[:20]) + (f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise AnnotationError(f"{len(problems)} media are missing for {len(clips)} clips of {path}:\n  {listed}")
    columns = ["id", *modalities] + (["label"] if any("label" in clip for clip in clips.values()) else [])
    return Dataset.from_list([{column: clip.get(column) for column in columns} for clip in clips.values()])


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise AnnotationError(f"There is no annotation file {path}.")
    readers = {".json": _read_json, ".jsonl": _read_json_lines, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise AnnotationError(
            f"{path}: annotations are {', '.join(readers)}; not {path.suffix or 'without extension'!r}."
        )
    try:
        rows = readers[path.suffix.lower()](path)
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(f"{path} cannot be read as {path.suffix}: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise AnnotationError(f"{path} must hold a list of objects, at least one.")
    return rows


def _read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _read_json_lines(path: Path):
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise AnnotationError(f"{path}, line {number} is no JSON: {error.msg} at column {error.colno}.") from error
    return rows


def _read_csv(path: Path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise AnnotationError(f"{path}, row {number} has more fields than the header; quote texts with commas.")
    return [{key: value for key, value in row.items() if value != ""} for row in rows]


def _only(row: dict[str, Any], names: Iterable[str], what: str, where: str):
    given = [name for name in names if row.get(name) is not None]
    if len(given) > 1:
        raise AnnotationError(f"{where} has {' and '.join(f'`{name}`' for name in given)}: keep one {what}.")
    return row[given[0]] if given else None


def _parse_row(row: dict[str, Any], where: str, base: Path, modalities: list[str]) -> dict[str, Any]:
    identity = _only(row, ID_COLUMNS, "id", where)
    if isinstance(identity, (bool, list, dict)) or identity is None or str(identity).strip() == "":
        raise AnnotationError(f"{where} has no id; add one of {list(ID_COLUMNS)}. It reads {json.dumps(row)[:200]}.")
    clip: dict[str, Any] = {"id": str(identity)}
    if "text" in modalities:
        captions = _only(row, CAPTION_COLUMNS, "caption column", where)
        captions = [captions] if isinstance(captions, str) else captions
        filled = isinstance(captions, list) and all(isinstance(text, str) and text.strip() for text in captions)
        if not filled or not captions:
            raise AnnotationError(f"{where} (id {clip['id']!r}) has an empty caption, or none: {captions!r}.")
        if any(caption.startswith(('["', "['")) for caption in captions):
            raise AnnotationError(
                f"{where}: {captions} looks like a list in a text; in CSV, repeat the row per caption."
            )
        clip["text"] = captions
    if "subtitle" in modalities:
        clip["subtitle"] = row.get("subtitle")
        if not isinstance(clip["subtitle"], str) or not clip["subtitle"].strip():
            raise AnnotationError(f"{where} (id {clip['id']!r}) has no subtitle, but subtitles were asked for.")
    for column in MEDIA_COLUMNS:
        if column in modalities or (column == "video" and "audio" in modalities):
            if not isinstance(row.get(column), (str, type(None))):
                raise AnnotationError(f"{where} (id {clip['id']!r}): `{column}` must be a path; got {row[column]!r}.")
            clip[column] = str(base / row[column]) if row.get(column) else None
    if row.get("label") is not None:
        clip["label"] = str(row["label"])
    return clip


def _merge(clips: dict[str, dict[str, Any]], clip: dict[str, Any], where: str):
    known = clips.setdefault(clip["id"], clip)
    if known is clip:
        return
    differing = [key for key in clip if key != "text" and clip[key] not in (None, known.get(key))]
    if differing or "text" not in clip:
        raise AnnotationError(
            f"{where} repeats the id {clip['id']!r} with another {differing or 'row'}: an id is one clip."
        )
    known["text"] = known["text"] + clip["text"]


def _index_folder(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise AnnotationError(f"There is no media folder {folder}.")
    index: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in VIDEO_EXTENSIONS + AUDIO_EXTENSIONS and file.is_file():
            index.setdefault(file.stem, []).append(file)
    return index


def _find_media(clip: dict[str, Any], folders: dict[str, dict], modalities: list[str]) -> list[str]:
    """Fill in the paths of one clip; returns what is missing."""
    problems = []
    for column in [name for name in MEDIA_COLUMNS if name in clip]:
        if clip[column] is None and column in folders:
            files = folders[column].get(clip["id"], [])
            if len(files) > 1:
                raise AnnotationError(
                    f"Id {clip['id']!r} fits several files: {[str(file) for file in files]}; keep one."
                )
            clip[column] = str(files[0]) if files else None
        elif clip[column] is not None and not Path(clip[column]).is_file():
            if column in modalities:
                problems.append(f"id {clip['id']!r}: {column} file {clip[column]} does not exist")
                continue
            clip[column] = None
        if column == "audio" and clip[column] is None and "audio" not in folders:
            clip[column] = clip.get("video")
        if clip[column] is None and column in modalities:
            hint = (
                f"not in the {column} folder" if column in folders else f"no `{column}` column and no {column} folder"
            )
            problems.append(f"id {clip['id']!r}: {column} ({hint})")
    return problems
