import json

import pytest

from transformers_gram.annotations import AnnotationError, load_annotations


@pytest.fixture
def clips(tmp_path):
    for name in ("video1.mp4", "video10.mp4", "Video2.mp4"):
        (tmp_path / name).write_bytes(b"clip")
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "video1.wav").write_bytes(b"sound")
    return tmp_path


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        header = list(rows[0])
        lines = [",".join(header)] + [",".join(f'"{row.get(key, "")}"' for key in header) for row in rows]
        path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_ids_match_files_exactly_and_sound_comes_from_the_video(clips, suffix):
    rows = [{"video_id": "video1", "desc": "a dog"}, {"video_id": "video10", "desc": "a cat, asleep"}]
    file = write(clips / f"annotations{suffix}", rows)
    (clips / "video1.txt").write_text("not a clip")
    data = load_annotations(file, {"video": clips})
    assert data.column_names == ["id", "text", "video", "audio"]
    assert data["text"][:] == [["a dog"], ["a cat, asleep"]]
    assert data["video"][:] == [str(clips / "video1.mp4"), str(clips / "video10.mp4")]
    assert data["audio"][:] == data["video"][:]
    with pytest.raises(
        AnnotationError, match=r"1 media are missing.*\n  id 'video10': audio \(not in the audio folder\)"
    ):
        load_annotations(file, {"video": clips, "audio": clips / "sounds"})
    (clips / "sounds" / "video10.mp3").write_bytes(b"sound")
    data = load_annotations(file, {"video": clips, "audio": clips / "sounds"})
    assert data["audio"][:] == [str(clips / "sounds" / "video1.wav"), str(clips / "sounds" / "video10.mp3")]


def test_what_a_later_caption_leaves_empty_it_inherits(clips):
    rows = [{"id": "video1", "text": "[Music] plays", "video": "video1.mp4"}, {"id": "video1", "text": "two"}]
    row = load_annotations(write(clips / "a.csv", rows))[0]
    assert row["text"] == ["[Music] plays", "two"] and row["video"].endswith("video1.mp4")


def test_files_saved_by_a_spreadsheet(clips):
    (clips / "a.csv").write_text("id,text\nvideo1,a dog\n", encoding="utf-8-sig")
    assert load_annotations(clips / "a.csv", {"video": clips})["id"][:] == ["video1"]


def test_columns_name_files_relative_to_the_annotations(clips):
    rows = [{"id": 7, "caption": ["one", "two"], "video": "video1.mp4", "audio": "sounds/video1.wav", "label": "dog"}]
    row = load_annotations(write(clips / "a.json", rows))[0]
    assert row == {
        "id": "7",
        "text": ["one", "two"],
        "video": str(clips / "video1.mp4"),
        "audio": str(clips / "sounds" / "video1.wav"),
        "label": "dog",
    }


def test_rows_of_one_id_are_captions_of_one_clip(clips):
    rows = [{"id": "video1", "text": "one"}, {"id": "video10", "text": "x"}, {"id": "video1", "text": "two"}]
    data = load_annotations(write(clips / "a.csv", rows), {"video": clips})
    assert data["id"][:] == ["video1", "video10"] and data["text"][:] == [["one", "two"], ["x"]]


def test_only_the_modalities_asked_for(clips):
    rows = [{"id": "video1", "text": "one", "subtitle": "hello"}]
    data = load_annotations(write(clips / "a.json", rows), modalities=["text", "subtitle"])
    assert data[0] == {"id": "video1", "text": ["one"], "subtitle": "hello"}
    data = load_annotations(clips / "a.json", {"video": clips}, modalities=["text", "audio"])
    assert data[0]["audio"] == str(clips / "video1.mp4")


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"text": "no id"}], r"row 1 has no id.*no id"),
        ([{"id": "video1", "text": "a"}, {"id": "", "text": "b"}], "row 2 has no id"),
        ([{"id": "video1"}], r"row 1 \(id 'video1'\) has an empty caption, or none"),
        ([{"id": "video1", "text": "  "}], "empty caption"),
        ([{"id": "video1", "text": ["a", ""]}], "empty caption"),
        ([{"id": "video1", "text": []}], "empty caption"),
        ([{"id": "video1", "text": "a", "caption": "b"}], "`text` and `caption`: keep one"),
        ([{"id": "video1", "video_id": "x", "text": "a"}], "`id` and `video_id`"),
        ([{"id": "video2", "text": "a"}], r"2 media are missing.*\n.*id 'video2': video \(not in the video folder\)"),
        ([{"id": "video1", "text": "a", "video": "lost.mp4"}], "video file .*lost.mp4 does not exist"),
        ([{"id": "video1", "text": "a"}, {"id": "video1", "text": "b", "video": "video10.mp4"}], "repeats the id"),
        ([{"id": ["video1"], "text": "a"}], "row 1 has no id"),
        ([{"id": "video1", "text": '["a", "b"]'}], "repeat the row per caption"),
        ([{"id": "video1", "text": "a", "video": 5}], r"row 1 \(id 'video1'\): `video` must be a path; got 5"),
        ([], "at least one"),
        (["text"], "list of objects"),
    ],
)
def test_wrong_rows_are_named_and_none_is_dropped(clips, rows, message):
    with pytest.raises(AnnotationError, match=message) as error:
        load_annotations(write(clips / "a.json", rows), {"video": clips})
    assert "a.json" in str(error.value)


def test_all_missing_media_are_listed(clips):
    rows = [{"id": f"clip{number}", "text": "a"} for number in range(30)]
    with pytest.raises(AnnotationError, match=r"30 media are missing for 30 clips.*(?s:.*)and 10 more"):
        load_annotations(write(clips / "a.json", rows), {"video": clips}, modalities=["text", "video"])


def test_unreadable_files(clips):
    for name, content, message in [
        ("broken.json", "[{", "broken.json cannot be read as .json"),
        ("lines.jsonl", '{"id": 1, "text": "a"}\n\n{"id"', "lines.jsonl, line 3 is no JSON"),
        ("notes.txt", "x", "notes.txt: annotations are .json"),
        ("wide.csv", "id,text\nvideo1,a dog, barking\n", "row 1 has more fields than the header"),
    ]:
        (clips / name).write_text(content)
        with pytest.raises(AnnotationError, match=message):
            load_annotations(clips / name, {"video": clips})
    with pytest.raises(AnnotationError, match="no annotation file"):
        load_annotations(clips / "nothing.json")
    with pytest.raises(AnnotationError, match="no media folder"):
        load_annotations(write(clips / "a.json", [{"id": "video1", "text": "a"}]), {"video": clips / "nowhere"})
    with pytest.raises(AnnotationError, match="smell"):
        load_annotations(clips / "a.json", modalities=["text", "smell"])


def test_an_id_that_fits_two_files_is_an_error(clips):
    (clips / "video1.webm").write_bytes(b"clip")
    with pytest.raises(AnnotationError, match=r"'video1' fits several files.*video1.mp4.*video1.webm"):
        load_annotations(write(clips / "b.json", [{"id": "video1", "text": "a"}]), {"video": clips})


def test_the_real_annotations_of_the_clips(real_media):
    data = load_annotations(real_media / "clips.json")
    assert data["id"][:] == ["video1", "video2", "video3", "video4"]
    assert data["text"][0] == ["A dog is barking"] and data["audio"][3].endswith("audios/audio4.mp3")
