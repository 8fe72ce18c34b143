"""Keras 3 on the torch backend: fit, parity with Keras's own rules, a model file that goes on to the bit."""

from __future__ import annotations

import inspect
import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import pytest
import torch

import proptim.keras
import proptim.torch

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)


def model(optimizer):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
    made = keras.Sequential(layers)
    made.compile(optimizer=optimizer, loss="mse")
    return made


def fit(net, epochs=3):
    return net.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]


@pytest.mark.parametrize("name", proptim.keras.__all__)
def test_fit_save_and_go_on(tmp_path, name):
    """The bits of proptim.torch on the same gradients; a loaded model trains on with the same bits."""
    cls = getattr(proptim.keras, name)
    net = model(cls(learning_rate=0.01))
    losses = fit(net)
    assert losses[-1] < losses[0]
    twin = model(keras.optimizers.SGD())
    options = {"weight_decay": 0.0} if name == "AdamW" else {}
    params = [v.value for v in twin.trainable_variables]
    opt = getattr(proptim.torch, name)(params, lr=float(np.float32(0.01)), **options)
    for _ in range(3):
        for k in range(0, 32, 8):
            opt.zero_grad()
            predicted = twin(torch.from_numpy(X[k : k + 8]), training=True)
            keras.losses.MeanSquaredError()(torch.from_numpy(Y[k : k + 8]), predicted).backward()
            if name == "AdamW":
                with torch.no_grad():
                    for p in params:
                        p -= p * 0.01 * 0.01
            opt.step()
    close = np.allclose if name in ("AdamW", "Rprop") else np.array_equal
    assert all(close(a, b) for a, b in zip(net.get_weights(), twin.get_weights(), strict=True))
    net.save(tmp_path / "net.keras")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert type(loaded.optimizer) is cls
    fit(net)
    fit(loaded)
    assert all(np.array_equal(a, b) for a, b in zip(net.get_weights(), loaded.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            proptim.keras.RMSprop(1e-2, alpha=0.9, eps=1e-7, eps_inside_sqrt=True),
            keras.optimizers.RMSprop(1e-2, rho=0.9, epsilon=1e-7),
        ),
        (
            proptim.keras.SGD(1e-2, momentum=0.9, global_clipnorm=0.5, use_ema=True, ema_overwrite_frequency=3),
            keras.optimizers.SGD(1e-2, momentum=0.9, global_clipnorm=0.5, use_ema=True, ema_overwrite_frequency=3),
        ),
        (
            proptim.keras.Adamax(
                keras.optimizers.schedules.ExponentialDecay(1e-2, 3, 0.5), gradient_accumulation_steps=2
            ),
            keras.optimizers.Adamax(
                keras.optimizers.schedules.ExponentialDecay(1e-2, 3, 0.5), epsilon=1e-8, gradient_accumulation_steps=2
            ),
        ),
        (proptim.keras.AdamW(1e-2, weight_decay=0.1), keras.optimizers.AdamW(1e-2, weight_decay=0.1, epsilon=1e-8)),
    ],
    ids=["RMSprop", "SGD", "Adamax", "AdamW"],
)
def test_parity_with_keras(ours, theirs):
    """What is around the rule is Keras's: clipping, EMA, schedules, accumulation, weight decay."""
    mine, other = model(ours), model(theirs)
    fit(mine)
    fit(other)
    for a, b in zip(mine.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


def test_config_and_signature():
    """A copy by its config is the same; the signature names what it takes."""
    opt = proptim.keras.Rprop(0.1, etas=(0.4, 1.3), clipnorm=1.0)
    copy = proptim.keras.Rprop.from_config(opt.get_config())
    assert copy.get_config() == opt.get_config()
    assert {"learning_rate", "etas", "step_sizes", "variant", "use_ema"} <= inspect.signature(
        type(opt)
    ).parameters.keys()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: proptim.keras.RMSprop(0.1, rho=0.9),
            TypeError,
            "unexpected keyword argument 'rho'; expected: learning",
        ),
        (lambda: proptim.keras.RMSprop(0.1, alpha=1.5), ValueError, "Invalid alpha value: 1.5"),
        (lambda: proptim.keras.Rprop(0.1, variant="irprop+"), ValueError, "compares losses, which Keras does not"),
        (
            lambda: proptim.keras.Rprop(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)),
            ValueError,
            "reads its learning rate only once",
        ),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", proptim.keras.__all__)
def test_sixteen_bits(tmp_path, name, policy):
    """State and what keeps float32 precision are variables of Keras: a loaded model trains on with the same bits."""
    keras.config.set_dtype_policy(policy)
    try:
        net = model(getattr(proptim.keras, name)(learning_rate=0.01))
        fit(net)
        net.save(tmp_path / "net.keras")
        loaded = keras.models.load_model(tmp_path / "net.keras")
        kinds = [sorted(str(v.dtype) for v in each.optimizer.variables) for each in (net, loaded)]
        assert kinds[0] == kinds[1]
        assert kinds[0].count("int16" if policy == "bfloat16" else "float32") >= len(net.trainable_variables)
        for v in net.trainable_variables:
            own, held = net.optimizer._inner.state[v.value], [each.value for each in net.optimizer.variables]
            assert all(any(tensor is each for each in held) for tensor in own.values())
        for _ in range(2):
            fit(net)
            fit(loaded)
            pairs = zip(net.trainable_variables, loaded.trainable_variables, strict=True)
            assert all(torch.equal(v.value, w.value) for v, w in pairs)
    finally:
        keras.config.set_dtype_policy("float32")
