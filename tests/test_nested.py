"""Dicts of dicts, as JAX, Flax and Haiku have parameters: their paths are names, for parameters and gradients alike."""

from __future__ import annotations

import numpy as np
import pytest

import proptim


def tree():
    return {
        "l1": {"w": np.ones((2, 3)), "b": np.zeros(3)},
        "relu": {},
        "l2": {"deep": {"w": np.ones(3)}},
        "c": np.ones(1),
    }


PATHS = ["l1.w", "l1.b", "l2.deep.w", "c"]


def grads():
    return {
        "c": np.ones(1),
        "l1": {"b": np.full(3, 2.0), "w": np.full((2, 3), 3.0)},
        "l2": {"deep": {"w": np.full(3, 4.0)}},
    }


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_the_same_as_flat(name, tmp_path):
    """Bits are those of a list, whether gradients are nested, flat by their paths, or a list; saving too."""
    nested, flat = tree(), tree()
    arrays = [flat["l1"]["w"], flat["l1"]["b"], flat["l2"]["deep"]["w"], flat["c"]]
    opt, plain = proptim.OPTIMIZERS[name](nested), proptim.OPTIMIZERS[name](arrays)
    given = grads()
    in_order = [given["l1"]["w"], given["l1"]["b"], given["l2"]["deep"]["w"], given["c"]]
    by_path = dict(zip(PATHS, in_order, strict=True))
    for each in (given, by_path, in_order, given):
        opt.step(each)
        plain.step(in_order)
    opt.save(tmp_path / "nested.npz")
    again = proptim.OPTIMIZERS[name](nested)
    again.load(tmp_path / "nested.npz")
    again.step(given)
    plain.step(in_order)
    assert nested["l1"]["w"].tobytes() == arrays[0].tobytes()
    assert nested["l1"]["b"].tobytes() == arrays[1].tobytes()
    assert nested["l2"]["deep"]["w"].tobytes() == arrays[2].tobytes()
    assert nested["c"].tobytes() == arrays[3].tobytes()


def test_groups_and_bound_gradients():
    """In a group too, and with gradients bound at the start; one may be None."""
    params, bound = tree(), grads()
    bound["l1"]["b"] = None
    opt = proptim.SGD([{"params": params, "lr": 1.0}], grads=bound)
    opt.step()
    assert params["l1"]["w"][0, 0] == -2
    assert params["l1"]["b"][0] == 0
    assert params["c"][0] == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda g: g["l1"].pop("w"), "grads has no 'l1.w'; expected every name of params"),
        (lambda g: g["l1"].update(v=np.ones(1)), "grads has the unknown key 'l1.v'"),
        (lambda g: g.update(l1=None), "grads has the unknown key 'l1'"),
        (lambda g: g.update({"l1.w": np.ones((2, 3))}), "grads has a name twice"),
        (lambda g: g["l1"].update(w=np.ones(2)), r'grads\[0\] \("l1.w"\) has shape'),
    ],
)
def test_refused_gradients(change, told):
    params, given = tree(), grads()
    opt = proptim.Adam(params)
    change(given)
    with pytest.raises(ValueError, match=told):
        opt.step(given)
    assert opt.steps == 0


def test_refused_parameters():
    with pytest.raises(ValueError, match=r"parameter name 'l1\.w' is used twice"):
        proptim.SGD({"l1": {"w": np.ones(1)}, "l1.w": np.ones(1)})
    with pytest.raises(TypeError, match="parameter name 0 is int; expected a string"):
        proptim.SGD({0: {"w": np.ones(1)}})
    with pytest.raises(TypeError, match="parameter name 0 is int; expected a string"):
        proptim.SGD({"l1": {0: np.ones(1)}})
    with pytest.raises(TypeError, match=r'params\[0\] \("l1.w"\) is list'):
        proptim.SGD({"l1": {"w": [1.0]}})


def test_norms():
    given = grads()
    arrays = [given["c"], *given["l1"].values(), given["l2"]["deep"]["w"]]
    assert proptim.global_norm(given) == proptim.global_norm(arrays) > 1
    assert proptim.clip_grad_norm(given, 1.0) > 1
    assert proptim.global_norm(given) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("form", [dict, list])
def test_decay_groups(form):
    """Each parameter is in one group, in order, and the right ones have weight decay."""
    params = {"w": np.ones((2, 2)), "b": np.ones(2), "scale": np.ones(()), "v": np.ones((2, 2, 2))}
    given = params if form is dict else list(params.values())
    groups = proptim.decay_groups(given, 0.1)
    assert [(group["name"], group["weight_decay"], len(group["params"])) for group in groups] == [
        ("decay", 0.1, 2),
        ("no_decay", 0.0, 2),
    ]
    opt = proptim.SGD(groups, lr=1.0)
    opt.step([np.zeros_like(params[name]) for name in ("w", "v", "b", "scale")])
    assert [params[name].max() for name in params] == [0.9, 1.0, 1.0, 0.9]
    if form is dict:
        opt.step({name: np.zeros_like(array) for name, array in params.items()})
    (only,) = proptim.decay_groups(given, 0.1, lambda name, array: True)
    assert (only["name"], len(only["params"])) == ("no_decay", 4)
    for wrong in (np.ones(3), {1, 2}, 3):
        with pytest.raises(TypeError, match="expected a sequence or dict of arrays"):
            proptim.decay_groups(wrong, 0.1)
    with pytest.raises(TypeError, match=r"params\[0\] is str"):
        proptim.decay_groups(["w"], 0.1)
