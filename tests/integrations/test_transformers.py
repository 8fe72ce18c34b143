"""Hugging Face Trainer: float32, bf16 and models loaded in bfloat16, parity with torch.optim, a resumed run."""

from __future__ import annotations

import pytest
import torch
from training import same, weights
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import proptim.torch


def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def texts():
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 50, (32, 6), generator=draw)
    return [{"input_ids": row, "labels": row[0] % 2} for row in rows]


def trained(folder, cls, *, steps=6, resume=False, bf16=False, loaded=None, **options):
    arguments = TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=8, save_steps=3, logging_steps=1, bf16=bf16,
        report_to=[], use_cpu=True, seed=0, disable_tqdm=True, learning_rate=1e-2, lr_scheduler_type="linear",
    )  # fmt: skip
    kind = {"optimizer_cls_and_kwargs": (cls, {"lr": 1e-2, **options})}
    net = model() if loaded is None else BertForSequenceClassification.from_pretrained(loaded, dtype=torch.bfloat16)
    trainer = Trainer(model=net, args=arguments, train_dataset=texts(), **kind)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return weights(trainer.model), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", ["AdamW", "RMSprop"])
@pytest.mark.parametrize("bf16", [False, True])
def test_parity(tmp_path, name, bf16):
    """Of losses: the bias of keys in attention has gradients that are rounding errors, which RMSprop makes large."""
    _, losses = trained(tmp_path / "a", getattr(proptim.torch, name), bf16=bf16)
    _, judged = trained(tmp_path / "b", getattr(torch.optim, name), bf16=bf16)
    assert len(losses) == 6
    torch.testing.assert_close(losses, judged, rtol=1e-2 if bf16 else 1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["AdamW", "Rprop"])
def test_resume(tmp_path, name):
    """Six steps are three, a checkpoint, and three more, to the bit."""
    whole, _ = trained(tmp_path, getattr(proptim.torch, name))
    resumed, _ = trained(tmp_path, getattr(proptim.torch, name), resume=True)
    assert same(whole, resumed)


@pytest.mark.filterwarnings("error:torch's own")
@pytest.mark.parametrize("name", ["AdamW", "Rprop"])
def test_a_model_loaded_in_bfloat16(tmp_path, name):
    """Its steps are those of float32: three, a checkpoint, and three more are six, to the bit, the low halves too."""
    model().save_pretrained(tmp_path / "model")
    asked = {"bf16": True, "loaded": tmp_path / "model"}
    whole, losses = trained(tmp_path, getattr(proptim.torch, name), **asked)
    resumed, _ = trained(tmp_path, getattr(proptim.torch, name), resume=True, **asked)
    assert {w.dtype for w in whole} == {torch.bfloat16}
    assert same(whole, resumed)
    saved = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    assert {own["master_lo"].dtype for own in saved.values()} == {torch.int16}
    assert losses[-1] < losses[0] or name == "Rprop"
