"""What README and cards promise in form: single-line commands, metadata that parses."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard


ROOT = Path(__file__).parents[1]


def test_both_commands_are_single_lines_from_nothing():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    for block, last in zip(blocks, ("examples/run_pretrain.py", "/pytest"), strict=False):
        assert block.count("\n") == 1 and block.strip().endswith(last)
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ")


@pytest.mark.parametrize("path", sorted((ROOT / "model_cards").glob("*.md")), ids=lambda path: path.stem)
def test_cards_have_metadata(path):
    card = ModelCard.load(path)
    assert card.data.library_name == "transformers_gram" and card.data.eval_results
    card.data.to_yaml()
