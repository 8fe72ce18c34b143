"""proptim.torch: a state_dict of another class, or a part of one, is refused before anything has changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import proptim
import proptim.torch

CLASSES = [cls.__name__ for cls in proptim.OPTIMIZERS.values()]
GIVEN = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (torch.optim, proptim.torch)
    for name in CLASSES
    if hasattr(module, name)
}
GIVEN["torch.optim.SparseAdam"] = torch.optim.SparseAdam
"""Classes whose states are loaded."""
ALIKE = {
    ("Adam", "AdamW"),
    ("AdamW", "Adam"),
    ("RAdam", "Adam"),
    ("RAdam", "AdamW"),
    ("SparseAdam", "Adam"),
    ("SparseAdam", "RAdam"),
}
"""States with the names of another class, and that class."""
PART = {"RMSprop": "square_avg", "Rprop": "step_size", "Adam": "exp_avg", "NAdam": "mu_product", "Adagrad": "step"}


def begun(cls):
    p = torch.nn.Parameter(torch.ones(3))
    opt = cls([p], lr=0.5)
    p.grad = torch.ones(3).to_sparse() if cls is torch.optim.SparseAdam else torch.ones(3)
    opt.step()
    return opt


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", CLASSES)
def test_state_of_another_class(name, given):
    """Refused with the name of what is missing or unknown, unless its names are those of this class."""
    saved = begun(GIVEN[given]).state_dict()
    p = torch.nn.Parameter(torch.ones(3))
    opt = getattr(proptim.torch, name)([p], lr=0.25)
    own = given.rpartition(".")[2]
    if own == name or (own, name) in ALIKE:
        opt.load_state_dict(saved)
        p.grad = torch.ones(3)
        opt.step()
        return
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=r"of state_dict has .*; expected the state of an optimizer of the same class"):
        opt.load_state_dict(saved)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)


@pytest.mark.parametrize("name", PART)
def test_state_with_a_part_missing(name):
    """Every array and count that each step needs; what an option switches on may start later."""
    saved = begun(getattr(proptim.torch, name)).state_dict()
    del saved["state"][0][PART[name]]
    opt = getattr(proptim.torch, name)([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(
        ValueError, match=f"^state 0 of state_dict has no '{PART[name]}'; expected .* same class: {name}"
    ):
        opt.load_state_dict(saved)


def test_hyperparameters_of_another_class():
    """Also where there is no state; keys that are no hyperparameters of anything stay, as in torch.optim."""
    p = torch.nn.Parameter(torch.ones(3))
    saved = torch.optim.Adam([p]).state_dict()
    opt = proptim.torch.RMSprop([p], alpha=0.5)
    with pytest.raises(
        ValueError, match=r"^group 0 of state_dict has the hyperparameter 'betas', unknown to RMSprop; "
    ):
        opt.load_state_dict(saved)
    del saved["param_groups"][0]["betas"], saved["param_groups"][0]["amsgrad"]
    with pytest.raises(
        ValueError, match=r"^group 0 of state_dict has no hyperparameter 'alpha'; .* same class: RMSprop"
    ):
        opt.load_state_dict(saved)
    saved["param_groups"][0].update(alpha=0.75, note="mine")
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["alpha"] == 0.75
    assert opt.param_groups[0]["note"] == "mine"
    saved["state"][0] = {}  # of a parameter that has made no step
    opt.load_state_dict(saved)
    assert not opt.state[p]


@pytest.mark.parametrize("name", CLASSES)
def test_state_of_an_optimizer_of_arrays(name):
    """It loads, also after steps of rows; but not where other rows have yet to catch up."""
    given, p = torch.ones(3, 2), torch.nn.Parameter(torch.ones(3, 2))
    arrays = getattr(proptim, name)([given])
    arrays.step([proptim.Rows([1], np.ones((1, 2), np.float32))], **({"loss": 1.0} if name == "Rprop" else {}))
    opt = getattr(proptim.torch, name)([p])
    saved = arrays.state_dict()
    saved["param_groups"][0].pop("variant", None)
    opt.load_state_dict(saved)
    p.grad = torch.ones(3, 2)
    opt.step()
    before = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0]["lazy_rows"] = False
    with pytest.raises(ValueError, match=r"^Invalid lazy_rows: False \(expected True: in proptim.torch the other rows"):
        opt.load_state_dict(saved)
    torch.testing.assert_close(opt.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^Invalid lazy_rows: False"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lazy_rows": False})
    assert len(opt.param_groups) == 1


def test_names_of_the_user_stay():
    """What no optimizer knows is kept and saved, as in torch.optim."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = proptim.torch.RMSprop([p])
    p.grad = torch.ones(3)
    opt.step()
    opt.state[p]["mine"] = 7
    again = proptim.torch.RMSprop([p])
    again.load_state_dict(opt.state_dict())
    assert again.state[p]["mine"] == 7
