"""The example as users run it: in processes of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SHARED
from huggingface_hub import ModelCard
from PIL import Image

from transformers_gram import GramModel, GramProcessor, load_annotations, volume


SCRIPT = Path(__file__).parents[1] / "examples" / "run_pretrain.py"
COMMON = ["--use_cpu", "--per_device_train_batch_size", "4", "--logging_steps", "1", "--save_total_limit", "5"]
PICTURES = ("training_curves.png", "volume_matrix.png", "embeddings.png")


@pytest.fixture(scope="module")
def annotations(sample_clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotations")
    for split in ("train", "test"):
        rows = [{key: row[key] for key in ("id", "text", "video", "label")} for row in sample_clips[split]]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


def command(annotations, output_dir, *arguments):
    files = ["--train_file", annotations / "train.json", "--eval_file", annotations / "test.json"]
    return [str(part) for part in [SCRIPT, *files, "--output_dir", output_dir, *COMMON, *arguments]]


def test_a_run_leaves_model_card_metrics_and_pictures(annotations, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    arguments = command(annotations, tmp_path, "--max_steps", "4", "--eval_steps", "2", "--save_steps", "4")
    run = subprocess.run([*launch, *arguments], check=True, capture_output=True, text=True, timeout=120)
    assert "| volume(text; audio, video) | text → clip |" in run.stdout

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["eval_num_clips"] == 9 and 0 <= metrics["eval_volume_text_to_clip_R@1"] <= 100
    for name in PICTURES:
        assert min(Image.open(tmp_path / name).size) > 300
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers_gram"
    assert {result.metric_type for result in card.data.eval_results} == {"R@1", "R@5", "R@10"}
    assert f"{metrics['eval_volume_text_to_clip_R@10']:.1f}" in card.text and "(embeddings.png)" in card.text

    model, processor = GramModel.from_pretrained(tmp_path), GramProcessor.from_pretrained(tmp_path)
    row = json.loads((annotations / "test.json").read_text())[0]
    batch = processor(text=row["text"], videos=[row["video"]], audio=[row["video"]])
    assert model(**batch).volumes.shape == (1, 1)


def test_five_modalities_from_folders_and_on_with_two_in_two_processes(annotations, sample_clips, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    lines = ["video_id,caption,subtitle"]
    for row in sample_clips["test"]:
        shutil.copy(row["video"], clips / f"{row['id']}.mp4")
        lines += [f'{row["id"]},"{caption}, they say",Hello {row["id"]}' for caption in (row["text"][0], "a clip")]
    (tmp_path / "clips.csv").write_text("\n".join(lines))
    folders = [f"--{name}_dir={clips}" for name in ("video", "audio", "depth")]
    arguments = [
        "--train_file",
        tmp_path / "clips.csv",
        *folders,
        *COMMON,
        "--max_steps",
        "2",
        "--save_strategy",
        "no",
    ]
    names = ["text", "video", "audio", "subtitle", "depth"]
    first = [sys.executable, SCRIPT, *arguments, "--output_dir", tmp_path / "five", "--modalities", *names]
    run = subprocess.run([str(part) for part in first], check=True, capture_output=True, text=True, timeout=120)
    assert "| volume(text; audio, depth, subtitle, video) | text → clip |" in run.stdout
    assert set(GramModel.from_pretrained(tmp_path / "five").config.modalities) == set(names)

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    second = command(annotations, tmp_path / "two", "--num_train_epochs", "1", "--modalities", "text", "video")
    second += ["--model_name_or_path", str(tmp_path / "five"), "--save_strategy", "no", "--eval_strategy", "no"]
    run = subprocess.run([*launch, *second], check=True, capture_output=True, text=True, timeout=120)
    assert "| volume(text; video) | text → clip |" in run.stdout
    assert "no columns for ['audio', 'depth', 'subtitle']" in run.stderr
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics["epoch"] == 1 and metrics["eval_num_clips"] == 9


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--modalities", "video", "audio"], "add text"),
        (["--video_dir", "clips"], "need a --train_file"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    run = subprocess.run(
        [sys.executable, SCRIPT, "--use_cpu", "--output_dir", tmp_path, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode != 0 and message in run.stderr


def losses(output_dir, step):
    state = json.loads((output_dir / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


def test_a_killed_run_resumes_on_the_same_curve(annotations, tmp_path):
    """Three epochs of four steps, so that the kill falls into the middle of one, with frames drawn at random."""
    arguments = ["--max_steps", "12", "--save_steps", "3", "--eval_strategy", "no"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    undisturbed = command(annotations, tmp_path / "undisturbed", *arguments)
    subprocess.run([sys.executable, *undisturbed], check=True, capture_output=True, timeout=120, env=environment)

    killed = command(annotations, tmp_path / "killed", *arguments)
    process = subprocess.Popen(
        [sys.executable, *killed],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-6" / "trainer_state.json").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "checkpoint-12" / "trainer_state.json").is_file()

    resumed = [*killed, "--resume_from_checkpoint", "True"]
    subprocess.run([sys.executable, *resumed], check=True, capture_output=True, timeout=120, env=environment)
    expected = losses(tmp_path / "undisturbed", 12)
    assert sorted(expected) == list(range(1, 13))
    assert losses(tmp_path / "killed", 12) == expected
    first, second = (GramModel.from_pretrained(tmp_path / name).state_dict() for name in ("undisturbed", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_wrong_annotations_end_the_run_before_it_starts(annotations, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([{"id": "x", "text": "a", "video": "lost.mp4"}]))
    run = subprocess.run(
        [sys.executable, SCRIPT, "--train_file", tmp_path / "train.json", "--use_cpu"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert run.returncode != 0
    assert re.search(r"AnnotationError: .*train.json:\n  id 'x': video file .*lost.mp4 does not exist", run.stderr)


@pytest.fixture
def four_clips(annotations, tmp_path):
    """The real clips; four sample clips where those are not beside the checkout."""
    if (SHARED / "media").is_dir():
        return SHARED / "media" / "clips.json"
    rows = (
        json.loads((annotations / "test.json").read_text())[::3]
        + json.loads((annotations / "train.json").read_text())[:1]
    )
    (tmp_path / "clips.json").write_text(json.dumps(rows))
    return tmp_path / "clips.json"


def test_four_clips_train_and_are_told_apart(four_clips, tmp_path):
    arguments = ["--train_file", four_clips, "--output_dir", tmp_path, "--use_cpu"]
    arguments += ["--max_steps", "60", "--eval_strategy", "no", "--save_strategy", "no"]
    run = [str(part) for part in [sys.executable, SCRIPT, *arguments]]
    subprocess.run(run, check=True, capture_output=True, timeout=200)
    rows = load_annotations(four_clips)
    model, processor = GramModel.from_pretrained(tmp_path).eval(), GramProcessor.from_pretrained(tmp_path)
    texts = [captions[0] for captions in rows["text"]]
    batch = processor(text=texts, videos=list(rows["video"]), audio=list(rows["audio"]))
    with torch.no_grad():
        outputs = model(**batch)
    volumes = outputs.volumes
    torch.testing.assert_close(volumes, volume(*(outputs.embeds[name] for name in ("text", "audio", "video"))))
    assert torch.equal(volumes.argmin(dim=0), torch.arange(4)) and torch.equal(volumes.argmin(dim=1), torch.arange(4))
