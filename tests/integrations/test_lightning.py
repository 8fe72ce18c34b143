"""Lightning: fit with a scheduler and clipping, a resumed run, and LightningCLI with our options on its line."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from training import RULES, close, data, network, same, weights

import proptim.torch


class Regression(lightning.LightningModule):
    def __init__(self, cls=None):
        super().__init__()
        self.net, self.cls = network(), cls

    def training_step(self, batch, index):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def configure_optimizers(self):
        opt = self.cls(self.parameters(), lr=0.01)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)}

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=8)


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def fitted(cls, folder, epochs, checkpoint=None, **options):
    trainer = lightning.Trainer(max_epochs=epochs, default_root_dir=folder, gradient_clip_val=1.0, **QUIET, **options)
    model = Regression(cls)
    trainer.fit(model, ckpt_path=checkpoint)
    return trainer, weights(model)


@pytest.mark.parametrize("name", RULES)
def test_fit_and_resume(tmp_path, name):
    cls = getattr(proptim.torch, name)
    _, whole = fitted(cls, tmp_path, 3)
    half, _ = fitted(cls, tmp_path, 1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fitted(cls, tmp_path, 3, tmp_path / "half.ckpt")
    assert same(whole, resumed)
    close(whole, fitted(getattr(torch.optim, name), tmp_path, 3)[1])


@pytest.mark.filterwarnings("error:torch's own")
@pytest.mark.parametrize("name", [*RULES, "Lion"])
def test_bf16_true(tmp_path, name):
    """A model that Lightning casts to bfloat16: the low halves are in its checkpoints."""
    cls, asked = getattr(proptim.torch, name), {"precision": "bf16-true"}
    trainer, whole = fitted(cls, tmp_path, 3, **asked)
    half, _ = fitted(cls, tmp_path, 1, **asked)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = fitted(cls, tmp_path, 3, tmp_path / "half.ckpt", **asked)
    assert {w.dtype for w in whole} == {torch.bfloat16}
    assert same(whole, again)
    lows = [[own["master_lo"] for own in t.optimizers[0].state.values()] for t in (trainer, resumed)]
    assert len(lows[0]) == len(whole)
    assert same(*lows)
    assert any(low.any() for low in lows[0])


class Plain(Regression):
    configure_optimizers = lightning.LightningModule.configure_optimizers


@pytest.mark.parametrize("name", ["RMSprop", "Lion"])
def test_cli(tmp_path, name):
    """Options of ours are arguments of the command, with the types of the signature."""
    trainer = {**QUIET, "max_epochs": 1, "default_root_dir": str(tmp_path)}
    given = [f"--optimizer=proptim.torch.{name}", "--optimizer.lr=0.01", "--optimizer.clip_norm=0.5"]
    given += ["--optimizer.nonfinite=skip", "--optimizer.max_skips=3", "--optimizer.threads=1"]
    cli = LightningCLI(Plain, trainer_defaults=trainer, args=["fit", *given], save_config_callback=None)
    (opt,) = cli.trainer.optimizers
    assert type(opt) is getattr(proptim.torch, name)
    assert (opt.clip_norm, opt.nonfinite, opt.max_skips, opt.threads) == (0.5, "skip", 3, 1)
    assert opt.grad_norm > 0


def test_cli_refuses_what_is_no_option(tmp_path, capsys):
    trainer = {**QUIET, "max_epochs": 1, "default_root_dir": str(tmp_path)}
    given = ["--optimizer=proptim.torch.RMSprop", "--optimizer.nonfinite=perhaps"]
    with pytest.raises(SystemExit):
        LightningCLI(Plain, trainer_defaults=trainer, args=["fit", *given], save_config_callback=None)
    assert "nonfinite" in capsys.readouterr().err
