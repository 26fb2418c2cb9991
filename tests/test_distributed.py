import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


SCRIPT = Path(__file__).parent / "scripts" / "one_step.py"


@pytest.fixture(scope="module")
def results(sample_clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_step")
    rows = [{"id": row["id"], "text": row["text"], "video": row["video"]} for row in sample_clips["train"]][:9]
    (folder / "clips.json").write_text(json.dumps(rows))
    results = []
    for processes, batch_size in ((1, 8), (2, 4)):
        output_dir = folder / str(processes)
        output_dir.mkdir()
        # `accelerate launch --cpu --num_processes 2` starts a single process (accelerate 1.15 asks for mpirun).
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*launch, SCRIPT, folder / "clips.json", output_dir, batch_size]
        subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=120)
        results.append(torch.load(output_dir / "results.pt"))
    return results


@pytest.mark.parametrize("measure", ["volume", "cosine"])
def test_two_processes_train_like_one(measure, results):
    one, two = (result[measure] for result in results)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    assert two["gradients"].keys() == one["gradients"].keys()
    total = torch.stack([gradient.norm() for gradient in one["gradients"].values()]).norm()
    for name, gradient in one["gradients"].items():
        # The gradient of the attention's key biases is zero but for rounding.
        error = (two["gradients"][name] - gradient).norm() / gradient.norm().clamp(min=1e-9 * total)
        assert error < 1e-5, name


@pytest.mark.parametrize("measure", ["volume", "cosine"])
def test_two_processes_evaluate_like_one(measure, results):
    one, two = ({k: v for k, v in result[measure]["metrics"].items() if "second" not in k} for result in results)
    one.pop("eval_runtime"), two.pop("eval_runtime")
    assert one["eval_num_clips"] == 9
    assert two == pytest.approx(one, abs=1e-6)
