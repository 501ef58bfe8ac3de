"""The blocks of docs/guides/frameworks.md, with small models and data in place of a user's."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from factorized import factorized_modules, load
from tests.harness import REPOSITORY

BLOCKS = re.findall(r"```py\n(.*?)```", (REPOSITORY / "docs" / "guides" / "frameworks.md").read_text(), re.DOTALL)


def test_recipes_are_short():
    assert len(BLOCKS) == 3 and all(block.count("\n") <= 30 for block in BLOCKS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 3))

    data = torch.utils.data.TensorDataset(torch.randn(16, 3, 4, 4), torch.randint(3, (16,)))
    options = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False,
    }  # fmt: skip
    names: dict[str, Any] = {
        "network": network(), "options": options, "batches": torch.utils.data.DataLoader(data, 8),
        "folder": tmp_path / "saved",
    }  # fmt: skip
    exec(BLOCKS[0], names)
    trained, x = names["module"].network.eval(), torch.randn(2, 3, 4, 4)
    assert factorized_modules(trained) and torch.equal(load(network(), tmp_path / "saved")(x), trained(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trainer_of_transformers(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    tokens = torch.randint(64, (8, 9))
    names: dict[str, Any] = {
        "language_model": LlamaForCausalLM(config),
        "examples": [{"input_ids": row, "labels": row} for row in tokens],
        "options": {
            "output_dir": tmp_path / "run", "max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True,
            "report_to": "none", "save_steps": 1, "disable_tqdm": True,
        },
        "folder": tmp_path / "saved",
    }  # fmt: skip
    exec(BLOCKS[1], names)
    trained = names["language_model"].eval()
    assert "model.embed_tokens" in factorized_modules(trained) and trained.lm_head.weight.shape == (64, 32)
    exec(BLOCKS[2], names)
    assert torch.equal(names["language_model"].eval()(tokens).logits, trained(tokens).logits)
    assert (tmp_path / "run" / "checkpoint-2" / "factorized.json").exists()
