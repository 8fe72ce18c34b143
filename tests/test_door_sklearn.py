"""scikit-learn's networks with proptim's optimizers inside: its own checks, and the bits of a loop by hand."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import proptim
from proptim.rprop import VARIANTS

sklearn = pytest.importorskip("sklearn")
import joblib  # noqa: E402
import scipy.sparse  # noqa: E402
from sklearn import neural_network  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV, train_test_split  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils import estimator_checks  # noqa: E402

from proptim.sklearn import MLPClassifier, MLPRegressor, load  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
BOTH = [MLPClassifier, MLPRegressor]
VERSION = tuple(map(int, sklearn.__version__.split(".")[:2]))
CASES = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cls in proptim.OPTIMIZERS.items()
    for i, case in enumerate(cls.cases)
]


def samples(make, n=60, dtype=np.float64, classes=3):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 4)).astype(dtype)
    if make is MLPRegressor:
        return X, X @ np.arange(4.0) + X[:, 0] ** 2
    y = np.arange(n) % classes
    return (X + 3 * y[:, None]).astype(dtype), y


def small(make, **given):
    """An estimator that takes a moment; all epochs, for tests that count."""
    return make((6, 5), **{"random_state": 0, "max_iter": 8, "n_iter_no_change": 1000, **given})


def weights(model):
    return [array.copy() for array in model.coefs_ + model.intercepts_]


def same(model, other):
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(weights(model), weights(other), strict=True))


def by_hand(model, X, y, make, options, epochs, loss=True):
    """Full-batch epochs of a fresh model: gradients as scikit-learn computes them, steps by an optimizer beside it."""
    classifier = isinstance(model, MLPClassifier)
    plain = (neural_network.MLPClassifier if classifier else neural_network.MLPRegressor)(
        hidden_layer_sizes=model.hidden_layer_sizes,
        solver="sgd",
        learning_rate_init=1e-300,
        batch_size=len(X),
        momentum=0,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.partial_fit(X, y, **({"classes": np.unique(y)} if classifier else {}))  # no step moves a weight
    target = plain._label_binarizer.transform(y).astype(bool) if classifier else y.astype(X.dtype)[:, None]
    params = plain.coefs_ + plain.intercepts_
    optimizer = make(params, **options)
    for _ in range(epochs):
        layers = len(plain.coefs_)
        lists = [X] + [None] * layers, [None] * layers, [None] * layers, [None] * layers
        weight = () if "sample_weight" not in inspect.signature(plain._backprop).parameters else (None,)
        loss, coefs, intercepts = plain._backprop(X, target, *weight, *lists)
        optimizer.step(coefs + intercepts, loss=float(loss))
    return params, float(loss)


# scikit-learn's own checks --------------------------------------------------------------------------------------------


def checks():
    """What `sklearn.utils.estimator_checks.check_estimator` goes through, one by one."""
    old = functools.partial(estimator_checks.check_estimator, generate_only=True)
    generate = getattr(estimator_checks, "estimator_checks_generator", old)  # from 1.6
    models = MLPClassifier(), MLPRegressor(), MLPClassifier(optimizer="adam"), MLPRegressor(optimizer="rmsprop")
    for model in models:
        for estimator, check in generate(model):
            yield pytest.param(estimator, check, id=f"{model}-{getattr(check, 'func', check).__name__}")


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), list(checks()))
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("make", BOTH)
def test_signature(make):
    """hidden_layer_sizes and activation by place, all else by name, with the defaults of scikit-learn."""
    ours = inspect.signature(make).parameters
    theirs = inspect.signature(getattr(neural_network, make.__name__)).parameters
    assert list(ours)[:8] == [
        *("hidden_layer_sizes", "activation", "optimizer", "lr"),
        *("optimizer_options", "alpha", "batch_size", *(["loss"] if make is MLPRegressor else ["max_iter"])),
    ]
    for i, (name, parameter) in enumerate(ours.items()):
        assert parameter.kind is (parameter.POSITIONAL_OR_KEYWORD if i < 2 else parameter.KEYWORD_ONLY)
        if name in theirs:
            assert parameter.default == theirs[name].default, name
    dropped = {
        *("solver", "learning_rate", "learning_rate_init", "power_t", "momentum", "nesterovs_momentum", "beta_1"),
        *("beta_2", "epsilon", "max_fun"),
    }
    added = {"optimizer", "lr", "optimizer_options", *({"loss"} - theirs.keys() if make is MLPRegressor else ())}
    assert theirs.keys() - ours.keys() == dropped, "scikit-learn has a parameter that is not here"
    assert ours.keys() - theirs.keys() == added
    assert make().get_params() == {name: p.default for name, p in ours.items()}
    for name in ours:
        assert name in make.__doc__


# Steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_bits_of_a_loop_by_hand(name, case, make, dtype):
    """Every rule and option: the weights, and the loss, are those of the optimizer on scikit-learn's gradients."""
    X, y = samples(make, dtype=dtype)
    case = dict(case)
    lr = case.pop("lr", None)
    options = case if lr is None else {**case, "lr": lr}
    model = small(make, optimizer=name, lr=lr, optimizer_options=case, batch_size=len(X)).fit(X, y)
    expected, loss = by_hand(model, X, y, proptim.OPTIMIZERS[name], options, 8)
    for ours, theirs in zip(weights(model), expected, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)
    assert model.loss_ == model.loss_curve_[-1] == pytest.approx(loss, rel=1e-15)
    assert model.n_iter_ == model.optimizer_.steps == len(model.loss_curve_) == 8
    with np.errstate(invalid="ignore"):  # with two rows OpenBLAS set that flag now and then, for numbers that are right
        assert model.predict(X[:2]).dtype == (dtype if make is MLPRegressor else y.dtype)


@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
@pytest.mark.parametrize("make", BOTH)
def test_names_and_classes(make, name):
    X, y = samples(make)
    cls = proptim.OPTIMIZERS[name]
    models = [small(make, optimizer=given).fit(X, y) for given in (name, name.upper(), cls.__name__, cls)]
    assert all(same(models[0], model) for model in models)
    assert all(type(model.optimizer_) is cls for model in models)
    for model in models:
        assert model.optimizer_.lr == cls([np.zeros(1)]).lr  # as published
        assert small(make, optimizer=cls, lr=0.003).fit(X, y).optimizer_.lr == 0.003


def test_a_class_of_ones_own():
    class Mine(proptim.Rprop):
        def __init__(self, params, lr=0.5, **options):
            super().__init__(params, lr, variant="irprop-", **options)

    X, y = samples(MLPRegressor)
    model = small(MLPRegressor, optimizer=Mine).fit(X, y)
    assert type(model.optimizer_) is Mine
    assert model.optimizer_.steps == 8  # the whole set in each


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("n", [30, 450])
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_batches(make, name, n):
    """ "auto" is the whole set for Rprop and min(200, n) for the others; early stopping takes its part before."""
    X, y = samples(make, n)
    steps = 1 if name == "rprop" or n == 30 else 3
    assert small(make, optimizer=name).fit(X, y).optimizer_.steps == 8 * steps
    assert small(make, optimizer=name, batch_size=10).fit(X, y).optimizer_.steps == 8 * n // 10
    for fraction in (0.1, 0.33, 0.5):
        model = small(make, optimizer=name, early_stopping=True, validation_fraction=fraction).fit(X, y)
        kept = len(train_test_split(X, test_size=fraction)[0])
        assert model.optimizer_.steps == 8 * (1 if name == "rprop" else -(-kept // 200))
    with pytest.warns(UserWarning, match="It is going to be clipped"):  # scikit-learn's own
        assert small(make, optimizer=name, batch_size=n + 1).fit(X, y).optimizer_.steps == 8
    assert small(make, optimizer=name).get_params()["batch_size"] == "auto"


@pytest.mark.parametrize("make", BOTH)
def test_a_whole_set_has_no_order(make):
    X, y = samples(make)
    assert same(small(make).fit(X, y), small(make, shuffle=False).fit(X, y))
    batches = [small(make, optimizer="adam", batch_size=20, shuffle=shuffle).fit(X, y) for shuffle in (True, False)]
    assert not same(*batches)
    for model in batches:
        assert vars(model)["batch_size"] == 20
        assert "solver" not in vars(model)


def test_loss_reaches_irprop_plus():
    """Rprop with weight backtracking compares the losses; each of a step, the penalty included."""
    seen = []

    class Spy(proptim.Rprop):
        def step(self, grads=None, *, loss=None):
            seen.append(loss)
            super().step(grads, loss=loss)

    X, y = samples(MLPRegressor)
    model = small(MLPRegressor, optimizer=Spy, optimizer_options={"variant": "irprop+"}, alpha=3.0).fit(X, y)
    assert seen == pytest.approx(model.loss_curve_, rel=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rprop_converges(variant):
    X, y = samples(MLPRegressor, 200)
    options = {"variant": variant}
    model = MLPRegressor((20,), "tanh", optimizer_options=options, max_iter=1500, random_state=0, tol=0).fit(X, y)
    assert model.score(X, y) > 0.99


def test_a_schedule_as_lr():
    X, y = samples(MLPClassifier, 50)
    model = small(MLPClassifier, optimizer="sgd", lr=proptim.schedules.linear(0.1, 0.0, 8)).fit(X, y)
    frozen = weights(model)
    model.partial_fit(X, y)  # the ninth step, of length 0
    assert all(map(np.array_equal, frozen, weights(model)))
    assert same(pickle.loads(pickle.dumps(model)), model)


@pytest.mark.parametrize("make", BOTH)
def test_threads_and_backends_have_the_same_bits(make):
    X, y = samples(make)
    backends = [{"backend": "numpy"}, {"threads": 1}, {"threads": 3}]
    models = [small(make, optimizer="rmsprop", optimizer_options=options).fit(X, y) for options in backends]
    assert same(models[0], models[1])
    assert same(models[0], models[2])
    assert (models[0].optimizer_.backend, models[2].optimizer_.threads) == ("numpy", 3)


# What scikit-learn's estimators do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_as_scikit_learn_trains(make, name):
    """Its own sgd and adam, with their mini-batches, are ours but for rounding and the place of epsilon."""
    X, y = samples(make, 90)
    theirs = getattr(neural_network, make.__name__)
    common = {"random_state": 3, "batch_size": 20, "max_iter": 12, "n_iter_no_change": 99}
    # scikit-learn's Adam adds epsilon before the bias correction, ours after it: here it is too small to matter.
    own = {"nesterovs_momentum": False, "epsilon": 1e-14, "learning_rate_init": 0.01}
    plain = theirs(hidden_layer_sizes=(7,), solver=name, **own, **common).fit(X, y)
    options = {"momentum": 0.9} if name == "sgd" else {"eps": 1e-14}
    ours = make((7,), optimizer=name, lr=0.01, optimizer_options=options, **common).fit(X, y)
    assert ours.loss_curve_ == pytest.approx(plain.loss_curve_, rel=1e-5)
    for a, b in zip(weights(ours), weights(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_sparse(make, name, dtype):
    X, y = samples(make, dtype=dtype)
    X[np.abs(X) < 0.7] = 0
    dense = small(make, optimizer=name).fit(X, y)
    for form in (scipy.sparse.csr_matrix, scipy.sparse.csc_matrix):
        model = small(make, optimizer=name).fit(form(X), y)
        assert {array.dtype for array in weights(model)} == {np.dtype(dtype)}
        assert model.n_iter_ == 8
        if name in ("rmsprop", "adam"):
            np.testing.assert_allclose(model.loss_curve_, dense.loss_curve_, rtol=1e-3)
        assert model.predict(form(X)).shape == y.shape


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_early_stopping(make, name):
    """The best weights are kept; the optimizer goes on with them."""
    X, y = samples(make, 90)
    model = small(make, optimizer=name, early_stopping=True, max_iter=30, n_iter_no_change=3).fit(X, y)
    assert len(model.validation_scores_) == model.n_iter_ == len(model.loss_curve_)
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert model.best_loss_ is None
    assert model.n_iter_ < 30 or model.validation_scores_[-1] >= model.validation_scores_[-2]
    assert model.optimizer_.param_groups[0]["params"][0] is model.coefs_[0]
    assert through_pickle(model).optimizer_.steps == model.optimizer_.steps > 0
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        model.partial_fit(X, y)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_partial_fit_goes_on(make, name):
    """Epoch by epoch has the bits of a fit; the optimizer is made once."""
    X, y = samples(make)
    options = {"optimizer": name, "batch_size": 20, "shuffle": False}
    whole = small(make, **options).fit(X, y)
    parts = small(make, **options)
    for epoch in range(8):
        parts.partial_fit(X, y, **({"classes": [0, 1, 2]} if make is MLPClassifier and not epoch else {}))
        optimizer = parts._optimizer
    assert same(whole, parts)
    assert parts._optimizer is optimizer
    assert parts.loss_curve_ == whole.loss_curve_
    assert parts.optimizer_.steps == 24
    parts.fit(X, y)  # begins anew
    assert same(whole, parts)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_warm_start(make, name):
    """The next fit begins with the weights of the last, and with a new optimizer."""
    X, y = samples(make)
    model = small(make, optimizer=name, warm_start=True).fit(X, y)
    assert model.fit(X, y).optimizer_.steps == 8
    expected = small(make, optimizer=name).fit(X, y)
    del expected._optimizer
    for _ in range(8):
        expected.partial_fit(X, y)
    assert same(model, expected)
    assert len(model.loss_curve_) == 16


@pytest.mark.skipif(VERSION < (1, 7), reason="scikit-learn has sample_weight from 1.7")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("name", proptim.OPTIMIZERS)
def test_sample_weight(make, name, dtype):
    X, y = samples(make, dtype=dtype)
    plain = small(make, optimizer=name).fit(X, y)
    ones = small(make, optimizer=name).fit(X, y, sample_weight=np.ones(len(X), dtype))
    np.testing.assert_allclose(ones.loss_curve_, plain.loss_curve_, rtol=1e-2)
    assert {array.dtype for array in weights(ones)} == {np.dtype(dtype)}
    heavy = np.where(np.arange(len(X)) < 5, 1.0, 0.0)
    model = small(make, optimizer=name, max_iter=200).fit(X, y, sample_weight=heavy)
    few = small(make, optimizer=name, max_iter=200, batch_size=len(X))
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    few.partial_fit(X, y, sample_weight=heavy, **({"classes": [0, 1, 2]} if make is MLPClassifier else {}))
    assert few.optimizer_.steps == 1


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities(classes):
    X, y = samples(MLPClassifier, classes=classes)
    labels = np.array(["a", "b", "c"])[y]
    model = small(MLPClassifier, max_iter=100).fit(X, labels)
    p = model.predict_proba(X)
    assert p.shape == (60, classes)
    assert p.sum(axis=1) == pytest.approx(1)
    assert (model.classes_[p.argmax(axis=1)] == model.predict(X)).all()
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(model.predict_log_proba(X), np.log(p))
    assert model.score(X, labels) > 0.9


def test_more_than_one_output():
    X, y = samples(MLPRegressor)
    model = small(MLPRegressor, max_iter=300, n_iter_no_change=400).fit(X, np.column_stack([y, -y]))
    assert model.predict(X).shape == (60, 2)
    assert model.score(X, np.column_stack([y, -y])) > 0.8
    multilabel = np.column_stack([X[:, 0] > 0, X[:, 1] > 0]).astype(int)
    assert small(MLPClassifier, max_iter=300, n_iter_no_change=400).fit(X, multilabel).score(X, multilabel) > 0.9


def test_poisson():
    X, y = samples(MLPRegressor)
    model = small(MLPRegressor, loss="poisson", max_iter=200)
    if VERSION < (1, 7):
        with pytest.raises(ValueError, match="loss is 'poisson'; expected 'squared_error': 'poisson' needs scikit-le"):
            model.fit(X, np.exp(y / 10))
    else:
        assert (model.fit(X, np.exp(y / 10)).predict(X) > 0).all()
        assert model.loss_curve_[-1] < model.loss_curve_[0]


# Copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["rprop", proptim.Adam])
@pytest.mark.parametrize("make", BOTH)
def test_clone(make, given):
    model = make((3,), optimizer=given, lr=0.5, optimizer_options={"threads": 1}).fit(*samples(make))
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "coefs_")
    with pytest.raises(AttributeError, match=r"this MLP\w+ has no optimizer_ yet; expected a fit first: fit\(X, y\)"):
        fresh.optimizer_  # noqa: B018
    assert fresh.set_params(optimizer="sgd", lr=None).optimizer == "sgd"
    assert repr(make(optimizer="adam")) == f"{make.__name__}(optimizer='adam')"


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_joblib(model):
    """Which does not keep that two references are to one array."""
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize(
    "copied", [through_pickle, through_joblib, copy.deepcopy, lambda m: through_pickle(through_joblib(m))]
)
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_copies_go_on(name, case, make, copied):
    """A copy in mid-run predicts the same and trains on to the same bits; the original is another model."""
    X, y = samples(make, dtype=np.float32)
    case = dict(case)
    model = small(make, optimizer=name, lr=case.pop("lr", None), optimizer_options=case).fit(X, y)
    twin, before = copied(model), weights(model)
    np.testing.assert_array_equal(twin.predict(X), model.predict(X))
    twin.partial_fit(X, y).partial_fit(X, y)
    assert all(map(np.array_equal, before, weights(model)))
    model.partial_fit(X, y).partial_fit(X, y)
    assert same(model, twin)
    assert twin.optimizer_.steps == model.optimizer_.steps == 10


def test_weights_that_were_replaced():
    """Arrays put in the place of the weights are trained, with the state that there is."""
    X, y = samples(MLPRegressor)
    model, other = (small(MLPRegressor, optimizer="adam").fit(X, y) for _ in range(2))
    model.coefs_ = [array.copy() for array in model.coefs_]
    model.intercepts_[0] = model.intercepts_[0].copy()
    assert same(model.partial_fit(X, y), other.partial_fit(X, y))
    assert model.optimizer_.param_groups[0]["params"][0] is model.coefs_[0]


def test_grid_search():
    X, y = samples(MLPClassifier, 90)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((5,), max_iter=60, random_state=0))
    grid = {
        "mlpclassifier__optimizer": ["rprop", "Adam", proptim.RMSprop],
        "mlpclassifier__lr": [None, 0.01],
        "mlpclassifier__optimizer_options": [None, {"weight_decay": 0.01}],
    }
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=1, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 12
    assert search.best_score_ > 0.9


def test_feature_names():
    pandas = pytest.importorskip("pandas")
    X, y = samples(MLPRegressor)
    frame = pandas.DataFrame(X, columns=list("abcd"))
    model = small(MLPRegressor).fit(frame, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(model.predict(frame), small(MLPRegressor).fit(X, y).predict(X))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c", "d"]])


# What is refused ------------------------------------------------------------------------------------------------------

NAMES = ", ".join(proptim.OPTIMIZERS)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"optimizer": "rmsprob"},
            ValueError,
            f"unknown optimizer 'rmsprob', did you mean 'rmsprop'?; expected one of {NAMES}",
        ),
        ({"optimizer": "ADAN"}, ValueError, f"unknown optimizer 'ADAN', did you mean 'adam'?; expected one of {NAMES}"),
        ({"optimizer": "lbfgs!"}, ValueError, f"unknown optimizer 'lbfgs!'; expected one of {NAMES}"),
        ({"optimizer": ""}, ValueError, f"unknown optimizer ''; expected one of {NAMES}"),
        (
            {"optimizer": "iRprop+"},
            ValueError,
            "optimizer 'iRprop+' is a variant of Rprop; expected optimizer='rprop', "
            "optimizer_options={'variant': 'irprop+'}",
        ),
        ({"optimizer": None}, TypeError, f"optimizer is None; expected a class of proptim or a name: {NAMES}"),
        (
            {"optimizer": dict},
            TypeError,
            f"optimizer is <class 'dict'>; expected a class of proptim or a name: {NAMES}",
        ),
        ({"optimizer_options": [1]}, TypeError, "optimizer_options is [1]; expected a dict of arguments of Rprop"),
        (
            {"optimizer": "sgd", "optimizer_options": {"momentun": 0.9}},
            ValueError,
            "optimizer_options has 'momentun', unknown to SGD, did you mean 'momentum'?; expected some of momentum, "
            "dampening, nesterov, weight_decay, decoupled_weight_decay, clip_value, clip_norm, grad_scale, nonfinite, "
            "max_skips, flush_denormals, state_dtype, rounding, seed, threads, backend",
        ),
        (
            {"optimizer_options": {"alpha": 0.9}},
            ValueError,
            "optimizer_options has 'alpha', unknown to Rprop; expected some of etas, step_sizes, variant, "
            "weight_decay, decoupled_weight_decay, clip_value, clip_norm, grad_scale, nonfinite, max_skips, "
            "flush_denormals, state_dtype, rounding, seed, threads, backend",
        ),
        (
            {"optimizer_options": {"lr": 0.1}},
            ValueError,
            "optimizer_options has 'lr'; expected none: pass it as the argument lr",
        ),
        (
            {"optimizer_options": {"maximize": True}},
            ValueError,
            "optimizer_options has 'maximize'; expected none: the loss is minimized",
        ),
        (
            {"optimizer_options": {"params": []}},
            ValueError,
            "optimizer_options has 'params'; expected none: it is the weights of the network",
        ),
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0 (expected a finite number >= 0)"),
        ({"lr": "fast"}, TypeError, "Invalid learning rate: 'fast' (expected a finite number >= 0)"),
        ({"lr": proptim.schedules.linear(1.0, 0.0, 9)}, ValueError, None),
        ({"optimizer_options": {"backend": "cuda"}}, ValueError, None),
    ],
)
@pytest.mark.parametrize("make", BOTH)
def test_refused(make, given, error, message):
    """With a message that says what would do; an estimator that was fitted before is as it was."""
    X, y = samples(make)
    with pytest.raises(error) as told:
        make(**given).fit(X, y)
    assert message is None or str(told.value) == message
    model = small(make, optimizer="rprop").fit(X, y)
    before, loss = weights(model), model.loss_curve_.copy()
    for call in (model.set_params(**given).fit, model.set_params(warm_start=True).fit, model.partial_fit):
        with pytest.raises(error):
            call(X, y)
        assert all(map(np.array_equal, before, weights(model)))
        assert model.loss_curve_ == loss


@pytest.mark.parametrize("make", BOTH)
def test_state_in_one_byte_is_for_weights_of_float32(make):
    """Which dtype weights have is known once X is seen; a refusal then leaves what was fitted as it is."""
    X, y = samples(make)
    model = make((64, 64), optimizer="adam", optimizer_options={"state_dtype": "int8"}, max_iter=2, tol=0)
    model.fit(X.astype(np.float32), y)
    kept = model.optimizer_.state_dict()["state"][1]
    assert (kept["exp_avg_code"].dtype, kept["exp_avg_sq_code"].dtype) == (np.int8, np.uint8)
    before = weights(model)
    with pytest.raises(ValueError, match=r"'int8' for params\[0\], which is float64"):
        model.fit(X, y)
    assert all(map(np.array_equal, before, weights(model)))
    again = model.optimizer_.state_dict()["state"][1]
    assert np.array_equal(again["exp_avg_code"], kept["exp_avg_code"])


@pytest.mark.parametrize("make", BOTH)
def test_parameters_of_scikit_learn_are_checked_by_it(make):
    X, y = samples(make)
    for given in ({"alpha": -1}, {"batch_size": 0}, {"activation": "gelu"}, {"max_iter": 0}, {"tol": "x"}):
        with pytest.raises(ValueError, match=f"The '{next(iter(given))}' parameter of {make.__name__} must be"):
            make(**given).fit(X, y)
    with pytest.raises(TypeError, match="solver"):
        make(solver="adam")
    with pytest.raises(ValueError, match="Invalid parameter 'solver' for estimator"):
        make().set_params(solver="adam")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("make", BOTH)
def test_divergence(make):
    X, y = samples(make)
    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        small(make, optimizer="sgd", lr=1e200, max_iter=50).fit(X, y)
    with pytest.raises(FloatingPointError):
        small(make, optimizer="sgd", lr=1e200, max_iter=50, optimizer_options={"nonfinite": "raise"}).fit(X, y)


@pytest.mark.filterwarnings("default")
def test_it_tells_that_it_has_not_converged(capsys):
    X, y = samples(MLPRegressor)
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(8\) reached"):
        small(MLPRegressor, verbose=True).fit(X, y)
    assert len(capsys.readouterr().out.splitlines()) == 8
    small(MLPRegressor, tol=1e9, n_iter_no_change=1, verbose=True).fit(X, y)
    assert capsys.readouterr().out.splitlines()[-1].endswith("for 1 consecutive epochs. Stopping.")


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "file.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match=r"holds no model .* expected a file that proptim train --save wrote"):
        load(path)
    proptim.Adam([np.zeros(3)]).save(path)
    with pytest.raises(ValueError, match=r"holds no model \(it holds an optimizer and no model\)"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


@pytest.mark.once
def test_imports():
    """scikit-learn is imported with proptim.sklearn and not before, and who lacks it is told what to install."""
    code = "import sys, proptim, proptim.cli; print('sklearn' in sys.modules); "
    code += "import proptim.sklearn; print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\nTrue\n"
    code = "import sys; sys.modules['sklearn'] = None; import proptim.sklearn"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.splitlines()[-1]
    assert told == (
        "ModuleNotFoundError: proptim.sklearn needs scikit-learn (import of sklearn halted; None in sys.modules): "
        "pip install 'proptim[sklearn]'"
    )


@pytest.mark.parametrize("make", [MLPClassifier, MLPRegressor])
def test_arguments_of_scikit_learns_optimizers(make):
    """What belongs to its own optimizers is refused with what stands here in its place."""
    with pytest.raises(TypeError, match=f"{make.__name__} has no 'solver'.*; expected optimizer='adam'"):
        make(solver="adam")
    with pytest.raises(TypeError, match=r"has no 'learning_rate_init'.*; expected lr"):
        make((5,), learning_rate_init=0.1)

    class Own(make):
        def __init__(self, momentum=0.5):
            self.momentum = momentum

    assert Own(momentum=0.1).get_params() == {"momentum": 0.1}
    assert list(inspect.signature(Own).parameters) == ["momentum"]
