"""Stable-Baselines3: PPO and A2C with the optimizers that they have from torch, and ours in their place."""

from __future__ import annotations

import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from training import close, same, weights

import proptim.torch

TF = {"alpha": 0.99, "eps": 1e-5}
CASES = [
    (PPO, {"n_steps": 32, "batch_size": 16}, proptim.torch.Adam, {"eps": 1e-5}, torch.optim.Adam, {"eps": 1e-5}),
    (
        A2C,
        {"n_steps": 8},
        proptim.torch.RMSprop,
        {**TF, "eps_inside_sqrt": True, "initial_square_avg": 1.0},
        RMSpropTFLike,
        TF,
    ),
]


def learned(kind, arguments, cls, options):
    policy = {"optimizer_class": cls, "optimizer_kwargs": options, "net_arch": [8]}
    model = kind("MlpPolicy", "CartPole-v1", policy_kwargs=policy, seed=0, device="cpu", **arguments)
    return model.learn(64)


@pytest.mark.parametrize("case", CASES, ids=["PPO", "A2C"])
def test_learn_and_load(tmp_path, case):
    kind, arguments, cls, options, theirs, their_options = case
    model = learned(kind, arguments, cls, options)
    close(weights(model.policy), weights(learned(kind, arguments, theirs, their_options).policy))
    model.save(tmp_path / "model.zip")
    loaded = kind.load(tmp_path / "model.zip", device="cpu")
    assert type(loaded.policy.optimizer) is cls
    assert same(weights(model.policy), weights(loaded.policy))
    for p, q in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(p)
    model.policy.optimizer.step()
    loaded.policy.optimizer.step()
    assert same(weights(model.policy), weights(loaded.policy))
