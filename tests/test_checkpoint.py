"""Checkpoints are read completely or raise an error, whatever happens to the file or to the process (P12, P13)."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import npy, packed, unzipped
from conftest import RUN_HERE, default
from fuzz import fuzz_load
from hypothesis import given, settings
from hypothesis import strategies as st
from test_state import CASES, LOSSES, NAMES, Run, frozen

import proptim
from proptim import _backend, _interrupts, _state, checkpoint, schedules
from proptim.cli import main
from proptim.cli.selftest import OPTIONS, STAGES

pytestmark = pytest.mark.once  # files do not depend on the backend, and tests of resuming go through all

CORPUS = sorted((Path(__file__).parent / "fuzz" / "corpus").glob("*"))
UNREADABLE = r"state\.npz cannot be read \(.+\); expected a file written by Optimizer\.save"
SECRETS = re.compile(r"zip|zlib|numpy|pickle|struct|codec|json\.|Errno|Expecting|Traceback|0x", re.IGNORECASE)
"""Terms of the libraries underneath, which must not appear in messages."""


def small(name="adam", options=None, steps=1):
    """A small optimizer that has made some steps, and its parameters."""
    params = [np.array([1.0, -2.0]), np.array(0.5)]
    opt = proptim.OPTIMIZERS[name](params, **OPTIONS[name][-1] if options is None else options)
    for _ in range(steps):
        opt.step([np.array([0.5, -0.0]), np.array(-3.0)], loss=1.0)
    return opt, params


def bits(opt, params):
    return frozen([params, opt.state_dict(), opt.param_groups, opt.steps, opt.skipped])


class Target:
    """An optimizer whose load() must fail and change nothing."""

    def __init__(self, path, name="adam", options=None):
        self.path = path / "state.npz"
        self.opt, self.params = small(name, options, steps=2)
        self.before = bits(self.opt, self.params)

    def refuse(self, content, message=UNREADABLE):
        self.path.unlink(missing_ok=True)  # written over, some file systems would sync it
        self.path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            self.opt.load(self.path)
        said = str(error.value).replace(str(self.path), "FILE")
        assert not SECRETS.search(said.replace(".npz", "")), said
        assert len(said) < 600
        assert bits(self.opt, self.params) == self.before
        return said


def saved(tmp_path, *args, **options):
    opt, _ = small(*args, **options)
    opt.save(tmp_path / "saved.npz")
    return (tmp_path / "saved.npz").read_bytes()


# The format ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
def test_format(name, options, tmp_path):
    """A file is what docs/checkpoint-format.md says."""
    content = saved(tmp_path, name, options)
    state = small(name, options)[0].state_dict()["state"]
    arrays = [f"state/{i}/{k}" for i, entry in state.items() for k, v in entry.items() if isinstance(v, np.ndarray)]
    assert content[-8:] == b"%08x" % zlib.crc32(content[:-8])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert [info.filename for info in archive.infolist()] == [f"{name}.npy" for name in ["rest", *arrays]]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        header = json.loads(file["rest"].tobytes().decode("ascii"))
        for array in arrays:
            _, key, kind = array.split("/")
            assert frozen(file[array]) == frozen(state[int(key)][kind])
    assert header.pop("format") == "proptim checkpoint 4"
    assert header.pop("arrays") == arrays
    assert header.pop("rule") == ("Adam" if name == "adamw" else type(small(name, options)[0]).__name__)
    assert header.keys() == {"state", "param_groups", "steps", "skipped", "skips_in_a_row", "round"}
    counts = {str(i): {k: v for k, v in e.items() if not isinstance(v, np.ndarray)} for i, e in state.items()}
    assert header["state"] == counts
    assert header["param_groups"][0]["params"] == [0, 1]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_layouts(dtype, tmp_path):
    """Every dtype, memory order and shape comes back as it was."""
    rng = np.random.default_rng(0)
    params = [
        np.asfortranarray(rng.standard_normal((3, 4)).astype(dtype)),
        rng.standard_normal((2, 3, 4)).astype(dtype).transpose(1, 2, 0),
        rng.standard_normal((4, 6)).astype(dtype)[::-2, ::3],
        *(np.ones(shape, dtype) for shape in [(), (0,), (3, 0, 2), (1,) * 32]),
    ]
    opt = proptim.Adam(params)
    opt.step([p * 3 for p in params])
    opt.save(tmp_path / "state.npz")
    twin = proptim.Adam([p.copy() for p in params])
    twin.load(tmp_path / "state.npz")
    assert frozen(twin.state_dict()) == frozen(opt.state_dict())
    foreign = (tmp_path / "state.npz").read_bytes()
    if sys.byteorder == "little":  # as a machine of the other byte order writes
        archive = unzipped(foreign)
        for name in archive:
            if name != "rest.npy":
                array = np.load(io.BytesIO(archive[name]))
                archive[name] = npy(array.astype(array.dtype.newbyteorder(">")))
        (tmp_path / "state.npz").write_bytes(packed(archive))
        twin = proptim.Adam([p.copy() for p in params])
        twin.load(tmp_path / "state.npz")
        assert frozen(twin.state_dict()) == frozen(opt.state_dict())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_arrays_in_pieces(dtype, tmp_path):
    """State that is written in pieces, as by several processes, gives the same bytes; mapping reads the same."""
    shapes = [(130, 70), (), (0,), (9001,)]
    opt = proptim.Adam([np.ones(shape, dtype) for shape in shapes])
    opt.step([np.full(shape, 0.5, dtype) for shape in shapes])
    opt.save(tmp_path / "whole")
    saved = opt.state_dict()
    arrays = [(i, k, v) for i, entry in saved["state"].items() for k, v in entry.items() if isinstance(v, np.ndarray)]
    pieces = (v.tobytes()[at : at + 999] for _, _, v in arrays for at in range(0, v.nbytes, 999))
    views = (np.frombuffer(piece, np.uint8) for piece in pieces)
    for i, name, array in arrays:
        saved["state"][i][name] = checkpoint.Streamed(array.shape, array.dtype, views)
    checkpoint.write(tmp_path / "pieces", saved)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert next(views, None) is None
    read, mapped = (checkpoint.read(tmp_path / "whole", mapped=mapped) for mapped in (False, True))
    for i, name, array in arrays:
        for loaded in (read, mapped):
            assert (loaded["state"][i][name].shape, loaded["state"][i][name].tobytes()) == (
                array.shape,
                array.tobytes(),
            )


def test_mapping_what_is_no_file_of_ours(tmp_path):
    """A file without bytes cannot be mapped, and is refused as any other."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "short").write_bytes(b"PK")
    for name in ("empty", "short"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read .*; expected a file written by Optimizer\.save"):
            checkpoint.read(tmp_path / name, mapped=True)


def test_header_is_bounded(tmp_path, monkeypatch):
    """No more JSON text is written than the reader accepts."""
    content = saved(tmp_path)
    monkeypatch.setattr(checkpoint, "MAX_HEADER", 100)
    with pytest.raises(ValueError, match=r"hyperparameters and names take \d+ bytes; expected at most 100"):
        small()[0].save(tmp_path / "other.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["saved.npz"]
    assert "its header has" in Target(tmp_path).refuse(content)


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_truncated(name, tmp_path):
    """Cut at every length, or with bytes before or after, a file is refused."""
    content, target = saved(tmp_path, name), Target(tmp_path, name)
    for length in range(len(content)):
        target.refuse(content[:length])
    for other in (content + b"\0", b"\0" + content, content + content, content[1:], b"", b"PK\3\4", b"\0" * 5000):
        target.refuse(other)


@pytest.mark.parametrize("name", NAMES)
def test_flipped(name, tmp_path):
    """With a bit of any byte flipped, in headers or data, a file is refused."""
    content, target = saved(tmp_path, name), Target(tmp_path, name)
    for at in range(len(content)):
        target.refuse(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])


# Foreign and hostile files -------------------------------------------------------------------------------------------


def raw_npy(descr, shape, data=b"", fortran="False", version=b"\1\0"):
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def header(**changes):
    """The header of the file of `small()`, changed; None takes a key out."""
    rest = {**small()[0].state_dict(), "format": checkpoint.FORMAT}
    rest["arrays"] = [f"state/{i}/{k}" for i, entry in rest["state"].items() for k in entry if k != "step"]
    rest["state"] = {str(i): {"step": e["step"]} for i, e in rest["state"].items()}
    return {k: v for k, v in (rest | changes).items() if v is not None}


def hostile(text=None, seal=True, contents=None, **changes):
    """A file with right checksums and a changed header, arrays that are others, or both."""
    text = json.dumps(header(**changes)).encode() if text is None else text
    members = {"rest.npy": npy(np.frombuffer(text, np.uint8))}
    state = small()[0].state_dict()["state"]
    members |= {f"{name}.npy": npy(state[int(name[6])][name[8:]]) for name in header()["arrays"]}
    return packed(members | (contents or {}), seal)


class Bomb:
    """Pickled, it would run code when loaded."""

    def __reduce__(self):
        return os.abort, ()


FIRST = "state/0/exp_avg.npy"
LISTED = header()["arrays"]
MANY = {"rest.npy": npy(np.frombuffer(json.dumps(header()).encode(), np.uint8))}
HOSTILE = {
    "empty": (b"", "no .npz file"),
    "text": (b"not an archive", "no .npz file"),
    "pickle": (pickle.dumps(Bomb()), "no .npz file"),
    "npy": (npy(np.ones(3)), "no .npz file"),
    "no members": (packed({}), "no .npz file"),
    "other npz": (packed({"weights.npy": npy(np.ones(3))}), "its first member is 'weights.npy' and not 'rest.npy'"),
    "path": (packed({"../../etc/passwd": b"x"}), "its first member is '../../etc/passwd' and not 'rest.npy'"),
    "long name": (packed({"n" * 60000: b"x"}), "its first member is 'nnnn"),
    "compressed": (packed(MANY, compression=zipfile.ZIP_DEFLATED), "'rest.npy' is compressed, encrypted or streamed"),
    "bomb": (packed({"rest.npy": bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED), "'rest.npy' is compressed"),
    "header alone": (packed(MANY), "has the member '' where its header lists the array 'state/0/exp_avg'"),
    "no npy": (packed({"rest.npy": b"{}"}), "'rest.npy' is no array of float32"),
    "objects": (packed({"rest.npy": npy(np.array([Bomb()]), allow_pickle=True)}), "'rest.npy' is no array of float32"),
    "not ascii": (hostile("{'é'}".encode()), "its header is no dict in JSON text"),
    "half json": (hostile(b"{"), "its header is no dict in JSON text"),
    "deep json": (hostile(b"[" * 100_000), "its header is no dict in JSON text"),
    "long number": (hostile(b"9" * 100_000), "its header is no dict in JSON text"),
    "list": (hostile(b"[1]"), "its header is no dict in JSON text"),
    "number": (hostile(b"7"), "its header is no dict in JSON text"),
    "no format": (hostile(format=None), "its format is None, which this version does not read"),
    "newer": (hostile(format="proptim checkpoint 5"), "its format is 'proptim checkpoint 5', which this version"),
    "formats list": (hostile(formats=[LISTED[0]]), 'no dict "formats" with "bfloat16" for some of its "arrays"'),
    "format of nothing": (hostile(formats={"state/0/x": "bfloat16"}), 'no dict "formats" with "bfloat16" for some'),
    "unknown dtype": (hostile(formats={LISTED[0]: "float8"}), 'no dict "formats" with "bfloat16" for some of its'),
    "odd dtype": (hostile(formats={LISTED[0]: []}), 'no dict "formats" with "bfloat16" for some of its "arrays"'),
    "named other": (hostile(formats={LISTED[0]: "bfloat16"}), "is float64, and its header says otherwise"),
    "not named": (hostile(contents={FIRST: npy(np.zeros(3, "u2"))}), "is uint16, and its header says otherwise"),
    "odd format": (hostile(format=[[]]), "its format is [[]], which"),
    "no seal": (hostile(seal=False), "damaged or cut short: its checksum at the end is wrong"),
    "no state": (hostile(state=None), 'no dict "state"'),
    "state list": (hostile(state=[]), 'no dict "state"'),
    "state keys": (hostile(state={"1": {}, "0": {}}), 'no dict "state"'),
    "no arrays": (hostile(arrays=None), 'no list "arrays"'),
    "state of numbers": (hostile(state={"0": 1, "1": 2}), f"has the member '{FIRST}' where"),
    "member in place of count": (hostile(state={"0": {"exp_avg": 1}, "1": {}}), f"has the member '{FIRST}' where"),
    "unlisted": (hostile(arrays=LISTED[:-1]), "which its header does not list"),
    "missing": (hostile(arrays=[*LISTED, "state/1/x"]), "the member '' where its header lists the array 'state/1/x'"),
    "order": (hostile(arrays=LISTED[::-1]), f"has the member '{FIRST}' where"),
    "listed twice": (hostile(arrays=LISTED[:1] * 2), "where its header lists"),
    "odd names": (hostile(arrays=[{}, 3, None]), "where its header lists the array {}"),
    "deep name": (hostile(arrays=["state/0/a/b"]), "lists the array 'state/0/a/b'"),
    **{f"array {why}": (hostile(contents={FIRST: content}), f"its member '{FIRST}' {said}") for why, content, said in [
        ("of objects", npy(np.array([Bomb()] * 2), allow_pickle=True), "is no array of float32"),
        ("of text", npy(np.array(["ab"] * 2)), "is no array of float32"),
        ("of long doubles", raw_npy("'<f16'", "(1,)", bytes(16)), "is no array of float32"),
        ("of records", npy(np.zeros(2, [("a", "f8")])), "is no array of float32"),
        ("of code", raw_npy("__import__('os').abort()", "(2,)", bytes(16)), "is no array of float32"),
        ("with code in the shape", raw_npy("'<f8'", "(2, exit())", bytes(16)), "is no array of float32"),
        ("of version 2", raw_npy("'<f8'", "(2,)", bytes(16), version=b"\2\0"), "is no array of float32"),
        ("with negative shape", raw_npy("'<f8'", "(-2,)", bytes(16)), "is no array of float32"),
        ("of no bytes", b"", "is no array of float32"),
        ("with a cut header", raw_npy("'<f8'", "(2,)")[:50], "is no array of float32"),
        ("with a long header", raw_npy("'<f8'", "(2,)" + " " * 60000, bytes(16)), "is no array of float32"),
        ("too short", raw_npy("'<f8'", "(2,)", bytes(15)), "has 15 bytes for float64 of shape (2,)"),
        ("too long", raw_npy("'<f8'", "(2,)", bytes(17)), "has 17 bytes for float64 of shape (2,)"),
        ("of 2**62 weights", raw_npy("'<f8'", f"({2**62}, 4)", bytes(16)), "has 16 bytes for float64 of shape (46116"),
        ("that wraps round", raw_npy("'<f8'", f"({2**32}, {2**32})", b""), "has 0 bytes for float64 of shape (429496"),
        ("of too many axes", raw_npy("'<f8'", f"({'1, ' * 99}2)", bytes(16)), "has the shape (1, 1, 1"),
        ("empty and vast", raw_npy("'<f8'", f"(0, {2**62})"), "has the shape (0, 46116860184"),
    ]},
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind, tmp_path):
    """A file that `save` did not write raises an error, executes nothing, and takes no memory beyond its own size."""
    content, message = HOSTILE[kind]
    target = Target(tmp_path)
    tracemalloc.start()
    try:
        said = target.refuse(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"({message}" in said or f"{message}" in said
    assert peak < 8 * len(content) + (1 << 18), peak  # the file, its text, the error and what pytest makes of it


def nested(depth):
    """A list in a list, and so on."""
    return [nested(depth - 1)] if depth else []


FITS_NOT = {
    "no groups": ({"param_groups": None}, 'no "state" and "param_groups"'),
    "groups": ({"param_groups": {}}, '"param_groups" a list'),
    "more groups": ({"param_groups": [{}, {}]}, "2 parameter groups; expected 1"),
    "empty group": ({"param_groups": [{}]}, 'has no list "params"'),
    "params": ({"param_groups": [{"params": [0]}]}, "has 1 parameters; expected 2"),
    "same params": ({"param_groups": [{"params": [0, 0]}]}, "has 0; expected one key a parameter"),
    "odd params": ({"param_groups": [{"params": [[], {}]}]}, "has []; expected one key a parameter"),
    "other params": ({"param_groups": [{"params": [0, 7]}]}, "has the state 1; expected the keys in its groups: [0"),
    "lr": ({"param_groups": [{"params": [0, 1], "lr": "x"}]}, "Invalid learning rate: 'x'"),
    "lr huge": ({"param_groups": [{"params": [0, 1], "lr": 10**400}]}, "Invalid learning rate: 1000"),
    "lr deep": ({"param_groups": [{"params": [0, 1], "lr": nested(900)}]}, ""),
    "lr list": ({"param_groups": [{"params": [0, 1], "lr": [[1], {}]}]}, "Invalid learning rate: ([1], {})"),
    "flag": ({"param_groups": [{"params": [0, 1], "maximize": 1}]}, "Invalid maximize: 1 (expected True or False)"),
    "steps": ({"steps": "x"}, "'steps' of state_dict is 'x'; expected a number"),
    "many steps": ({"steps": 10**400}, "expected a count, below 2**63"),
    "too many steps": ({"steps": 2**63}, "'steps' of state_dict is 9.22337e+18; expected a count, below 2**63"),
    "skipped": ({"skipped": -1}, "'skipped' of state_dict is -1; expected a count"),
    "skips": ({"skips_in_a_row": {}}, "'skips_in_a_row' of state_dict is {}; expected a number"),
    **{f"round {r}": ({"round": r}, f"'round' of state_dict is {r!r}; expected a list of indices of parameters")
       for r in ([2], [-1], ["0"], [True], [0.0], [[]], {}, 1)},
    "step": ({"state": {"0": {"step": [1, 2]}, "1": {}}}, "'step' in state 0 of state_dict is [1, 2]; expected a num"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FITS_NOT)
def test_headers_that_do_not_fit(kind, tmp_path):
    """A readable file with invalid values raises an error with the name of the file."""
    changes, message = FITS_NOT[kind]
    said = Target(tmp_path).refuse(hostile(**changes), "does not fit this Adam: ")
    assert said.startswith("FILE does not fit this Adam: ")
    assert message in said


@pytest.mark.parametrize("other", NAMES)
@pytest.mark.parametrize("name", NAMES)
def test_files_of_other_optimizers(name, other, tmp_path):
    """A file of another optimizer, or for other parameters, is refused by name."""
    target = Target(tmp_path, name, {})
    content = saved(tmp_path, other, {})
    if name == other or {name, other} == {"adam", "adamw"}:
        target.opt.load(tmp_path / "saved.npz")
        assert target.opt.steps == 1
    else:
        target.refuse(content, rf"state\.npz does not fit this {type(target.opt).__name__}: .*; expected ")


OTHERS = {
    "shape": ([np.ones(3), np.array(0.5)], "has shape (3,); expected (2,), the shape of params[0]"),
    "fewer": ([np.ones(2)], "group 0 of state_dict has 1 parameters; expected 2"),
    "complex": ([np.ones(2, complex), np.array(0.5)], "is complex128; expected float64, the dtype of params[0]"),
    "groups": ([{"params": [np.ones(2)]}, {"params": [np.array(0.5)]}], "has 2 parameter groups; expected 1"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "sgd"])
def test_files_of_other_parameters(name, kind, tmp_path):
    """The same optimizer over other parameters."""
    params, message = OTHERS[kind]
    other = proptim.OPTIMIZERS[name](params)
    other.save(tmp_path / "saved.npz")
    said = Target(tmp_path, name, {}).refuse((tmp_path / "saved.npz").read_bytes(), "does not fit this")
    assert message in said


def test_named_parameters(tmp_path):
    """Names of parameters are compared if both sides have them."""
    proptim.SGD({"a": np.ones(2)}).save(tmp_path / "state.npz")
    opt = proptim.SGD({"b": np.ones(2)})
    with pytest.raises(ValueError, match=r"does not fit this SGD: .* has the parameters \['a'\]; expected \['b'\]"):
        opt.load(tmp_path / "state.npz")


def test_no_regular_files(tmp_path):
    """Folders and pipes are neither read nor replaced; a missing file raises FileNotFoundError."""
    opt, _ = small()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        for use in (opt.load, opt.save):
            with pytest.raises(ValueError, match="is not a regular file; expected a path for a checkpoint of its own"):
                use(path)
    with pytest.raises(FileNotFoundError):
        opt.load(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError):
        opt.save(tmp_path / "none" / "state.npz")


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}])
def test_memory_of_loading(options, tmp_path):
    """A load takes the file and the state arrays once each; a save takes the arrays once."""
    size = 1 << 18
    opt = proptim.Adam([np.ones(size)], **options)
    state = 8 * size * (2 + len(options))
    tracemalloc.start()
    try:
        opt.save(tmp_path / "state.npz")
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        opt.load(tmp_path / "state.npz")
        loading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert saving < 1.1 * state + (2 << 20)
    assert loading < 2.1 * state + (1 << 20)


# All or nothing ------------------------------------------------------------------------------------------------------


class Injector:
    """Raises at the n-th call, of Python or of C, that is made inside a function; n = 0 counts."""

    def __init__(self, inside, outside, error, n):
        self.inside, self.outside, self.error, self.n, self.count, self.depth = inside, outside, error, n, 0, 0

    def __call__(self, frame, event, arg):
        if frame.f_code is self.outside:
            self.depth = 0
        if event == "call" and frame.f_code is self.inside:
            self.depth = 1
        if self.depth and event in ("call", "c_call"):
            self.count += 1
            if self.count == self.n:
                raise self.error

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *exc):
        sys.setprofile(None)


EXIT = _interrupts.commit.__code__
"""Called when everything is done; later errors change nothing."""


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("name", NAMES)
def test_loading_that_fails_anywhere(name, error):
    """With an error at each call that loading makes in turn, nothing has changed, and the next step is the same."""
    options = {**OPTIONS[name][-1], **STAGES[1]}
    loaded = Run(name, {**options, "weight_decay": 0.2}).go([0]).opt.state_dict()
    run, twin = (Run(name, options).go(range(2)) for _ in range(2))
    before = run.bits()
    n = 1
    while True:
        with Injector(_state.parse.__code__, EXIT, error, n) as injector:
            try:
                run.opt.load_state_dict(loaded)
                break
            except error:
                pass
        assert run.bits() == before, n
        if n % 16 == 1:
            assert run.opt.param_groups[0]["weight_decay"] == 0.1
            again = Run(name, options).go(range(2))
            assert run.bits() == again.bits()
        n += 1
    assert n > 100
    assert injector.count < n
    assert run.opt.param_groups[0]["weight_decay"] == 0.2
    assert run.opt.steps == 1
    assert twin.bits() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_load_leaves_the_next_steps(name):
    """After loads that failed half-way and at the end, the optimizer steps on with the bits of one left alone."""
    options = {**OPTIONS[name][-1], **STAGES[1]}
    loaded = Run(name, {**options, "weight_decay": 0.2}).go([0]).opt.state_dict()
    alone = Run(name, options).go(range(len(LOSSES))).bits()
    counted = Run(name, options).go(range(3))
    with Injector(_state.parse.__code__, EXIT, MemoryError, 0) as injector:
        counted.opt.load_state_dict(loaded)
    for n in range(1, injector.count, 7):
        run = Run(name, options).go(range(3))
        with Injector(_state.parse.__code__, EXIT, MemoryError, n), pytest.raises(MemoryError):
            run.opt.load_state_dict(loaded)
        assert run.go(range(3, len(LOSSES))).bits() == alone


class Failing:
    """A plan type that fails at a given moment: when made, or when bound."""

    def __init__(self, real, where):
        self.real, self.where = real, where

    def __call__(self, *args):
        if self.where == "made":
            raise MemoryError
        return Failed(self.real(*args))


class Failed:
    def __init__(self, plan):
        self.plan = plan

    def bind(self, *args):
        raise MemoryError

    def __getattr__(self, name):
        return getattr(self.plan, name)


@pytest.mark.parametrize("where", ["made", "bound"])
@pytest.mark.parametrize("name", NAMES)
def test_plans_that_cannot_be_made(name, where, monkeypatch):
    """No memory for a plan, in load_state_dict, in a step after a group was added or that grows the state, and in
    remove_param_group: the call has changed nothing.
    """
    grows = {"momentum": 0.5, "amsgrad": True}
    options = {k: v for k, v in OPTIONS[name][0].items() if k not in grows}
    run, twin = (Run(name, options).go(range(2)) for _ in range(2))
    before, fit = run.bits(), Run(name, options).go([0]).opt.state_dict()
    real = _backend.plan_type

    def fail():
        monkeypatch.setattr(_backend, "plan_type", lambda backend: Failing(real(backend), where))

    fail()
    with pytest.raises(MemoryError):
        run.opt.load_state_dict(fit)
    assert run.bits() == before
    run.opt.add_param_group({"params": {"new": np.ones(3)}})  # whose plan is made by the next step
    more = run.bits()
    for change in (run.opt.step, lambda: run.opt.step_param("new", np.ones(3)), lambda: run.opt.remove_param_group(1)):
        with pytest.raises(MemoryError):
            change()
        assert run.bits() == more
        assert len(run.opt.param_groups) == 2
    monkeypatch.setattr(_backend, "plan_type", real)
    run.opt.remove_param_group(1)
    assert run.bits() == before
    grown = {k: v for k, v in grows.items() if k in run.opt.param_groups[0]}
    if grown:
        for each in (run, twin):
            each.opt.param_groups[0].update(grown)
        before = run.bits()
        fail()
        with pytest.raises(MemoryError):
            run.go([2])
        monkeypatch.setattr(_backend, "plan_type", real)
        assert run.bits() == before
    assert run.go(range(2, len(LOSSES))).bits() == twin.go(range(2, len(LOSSES))).bits()


# Saving --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a ZipFile that is left open
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_saving_that_fails_anywhere(error, tmp_path):
    """With an error at each call that saving makes in turn, the file is the old or the new, and there is no other."""
    opt, params = small()
    path = tmp_path / "state.npz"
    opt.save(path)
    old = path.read_bytes()
    opt.step([np.ones(2), np.array(1.0)])
    with Injector(checkpoint.write.__code__, None, error, 0) as injector:
        opt.save(path)
    new, before, found = path.read_bytes(), bits(opt, params), []
    for n in range(1, injector.count + 1):
        path.unlink()
        path.write_bytes(old)
        try:
            with Injector(checkpoint.write.__code__, None, error, n):
                opt.save(path)
        except (type(error), ValueError):  # a ZipFile that is interrupted may say that it is still open
            found.append(payload(path.read_bytes()))
        assert [p.name for p in tmp_path.iterdir()] == ["state.npz"], n
        assert bits(opt, params) == before
    assert len(found) > 100
    turn = found.index(payload(new))  # the last calls are those that sync the folder
    assert set(found[:turn]) == {payload(old)}
    assert set(found[turn:]) == {payload(new)}


def payload(content):
    """All but the time of writing."""
    return tuple(unzipped(content).items())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells which file is synced")
def test_order_of_saving(tmp_path, monkeypatch):
    """Synced, renamed, and then the folder synced."""
    opt, _ = small()
    done, sync, replace = [], os.fsync, Path.replace

    def fsync(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink()
        done.append(("sync", path.name))
        if path.is_file():  # all of it is there already
            assert checkpoint.read(path)["steps"] == 1
        sync(handle)

    def rename(self, target):
        done.append(("rename", self.name, Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    opt.save(tmp_path / "state.npz")
    (_, temporary), *rest = done
    assert re.fullmatch(r"\.state\.npz\.[0-9a-f]{8}", temporary)
    assert rest == [("rename", temporary, "state.npz"), ("sync", tmp_path.name)]


LIMITED = """
import errno, os, resource, sys
import numpy as np, proptim
size, stride = SIZE, STRIDE
opt = proptim.Adam([np.arange(float(size))])
opt.save("state.npz")
old = open("state.npz", "rb").read()
opt.step([np.ones(size)])
failed = 0
for limit in range(0, len(old), stride):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        opt.save("state.npz")
        raise SystemExit(f"saved in {limit} bytes")
    except OSError as error:
        assert error.errno == errno.EFBIG, error
    failed += 1
    assert open("state.npz", "rb").read() == old
    assert os.listdir() == ["state.npz"], os.listdir()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
opt.save("state.npz")
proptim.Adam([np.ones(size)]).load("state.npz")
print(failed)
"""


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (4000, 97)])
def test_no_room_for_the_file(size, stride, fresh):
    """A limit on the size of files: OSError, the old file stays, no other file appears, and a later save works."""
    assert int(fresh(LIMITED.replace("SIZE, STRIDE", f"{size}, {stride}"))) > 400


FULL = """
import errno, os, subprocess, sys
import numpy as np, proptim
os.mkdir("disk")
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "disk"], check=True)
os.chdir("disk")
opt = proptim.Adam([np.arange(1000.0)])
opt.save("state.npz")
old = open("state.npz", "rb").read()
opt.step([np.ones(1000)])
with open("filler", "wb", buffering=0) as filler:
    filler.write(bytes(1 << 16))
failed = 0
for room in range(0, 16384, 4096):
    os.truncate("filler", os.stat("filler").st_size - (4096 if room else 0))
    try:
        opt.save("state.npz")
        raise SystemExit(f"saved in {room} bytes")
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    failed += 1
    assert open("state.npz", "rb").read() == old
    assert sorted(os.listdir()) == ["filler", "state.npz"], os.listdir()
os.remove("filler")
opt.save("state.npz")
proptim.Adam([np.ones(1000)]).load("state.npz")
print(failed)
"""


def test_full_disk(fresh):
    """A file system of 64 kB without room: the same."""
    probe = "mkdir probe && mount -t tmpfs -o size=16k tmpfs probe"
    if subprocess.run(["unshare", "-m", "sh", "-c", f"cd $(mktemp -d) && {probe}"], capture_output=True).returncode:
        pytest.skip("no mount namespace here: RLIMIT_FSIZE alone stands for a full disk")
    assert fresh(FULL, launcher=("unshare", "-m")) == "4"


SAVER = """
import os, signal, sys
import numpy as np, proptim

def work(kill_at):
    opt = proptim.Adagrad([np.zeros(3), np.zeros(())])
    opt.load("state.npz")
    count = 0
    def kill(frame, event, arg):
        nonlocal count
        if event == "c_call":
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    while True:
        opt.step([np.ones(3), np.ones(())])
        if kill_at:
            sys.setprofile(kill)
        opt.save("state.npz")
        if kill_at:
            os._exit(0)
        os.write(1, b".")

proptim.Adagrad([np.zeros(3), np.zeros(())]).save("state.npz")
for line in sys.stdin:
    child = os.fork()
    if not child:
        print(os.getpid(), flush=True)  # before what it says of its saves
        work(int(line))
    if int(line):
        print(os.waitpid(child, 0)[1], flush=True)
    else:
        os.waitpid(child, 0)
        print("\\nkilled", flush=True)
"""


@pytest.fixture
def saver(tmp_path):
    """A process that forks children that save; its input and output, line by line."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    yield process
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def saved_steps(path):
    """The number of steps of the saved run, after checking that there is one complete file."""
    opt = proptim.Adagrad([np.zeros(3), np.zeros(())])
    opt.load(path)
    assert {entry["step"] for entry in opt.state.values()} == {opt.steps}
    assert {x for entry in opt.state.values() for x in np.ravel(entry["sum"])} == {float(opt.steps)}
    return opt.steps


def leftovers(path):
    return [p for p in path.iterdir() if p.name != "state.npz"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_call(saver, tmp_path):
    """SIGKILL at each call of C in turn: the file is the old one until it is renamed, then the new one."""
    found = []
    for n in range(1, 5000):
        saver.stdin.write(b"%d\n" % n)
        saver.stdout.readline()
        status = int(saver.stdout.readline())
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        found.append(saved_steps(tmp_path / "state.npz") - sum(found))
    assert len(found) > 100
    turn = found.index(1)
    assert set(found[:turn]) == {0}
    assert set(found[turn:]) == {1}  # from the renaming on every save counts
    assert all(re.fullmatch(r"\.state\.npz\.[0-9a-f]{8}", p.name) for p in leftovers(tmp_path))
    assert 0 < len(leftovers(tmp_path)) <= turn


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_200_times(saver, tmp_path):
    """SIGKILL at any time, 200 times: the file is whole, and no save that returned is lost."""
    rng = random.Random(0)
    last = 0
    for _ in range(200):
        saver.stdin.write(b"0\n")
        child = int(saver.stdout.readline())
        dots = saver.stdout.read(1)  # it has saved once
        time.sleep(rng.uniform(0, 0.004))
        os.kill(child, signal.SIGKILL)
        while (byte := saver.stdout.read(1)) != b"\n":
            dots += byte
        assert saver.stdout.readline() == b"killed\n"
        steps = saved_steps(tmp_path / "state.npz")
        assert last + len(dots) <= steps <= last + len(dots) + 1  # of the last one only the answer may be missing
        last = steps
    assert last >= 200
    assert len(leftovers(tmp_path)) <= 200


# Resuming ------------------------------------------------------------------------------------------------------------


def by_file(opt, fresh, path):
    opt.save(path)
    fresh.load(path)


def by_state_dict(opt, fresh, path):
    fresh.load_state_dict(opt.state_dict())


def by_pickle(opt, fresh, path):
    fresh.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))


def by_torch(opt, fresh, path):
    """Through torch's optimizer of the same rule and back."""
    saved = opt.state_dict()
    for entry in saved["state"].values():
        entry.update({k: torch.tensor(v) for k, v in entry.items() if k == "step" or isinstance(v, np.ndarray)})
    params = [torch.tensor(p.array) for p in opt._stepper.parameters]
    theirs = getattr(torch.optim, type(opt).__name__)(params)
    theirs.load_state_dict(saved)
    fresh.load_state_dict(theirs.state_dict())


PLACES = [
    {"backend": backend, "isa": isa, "threads": threads}
    for backend, isa in (param.values[0] for param in RUN_HERE)
    for threads in ((1, 2, 3, 7) if backend == "c" else (1,))
]
WAYS = {"file": by_file, "state_dict": by_state_dict, "pickle": by_pickle, "torch": by_torch}


@contextmanager
def at(place):
    with pytest.MonkeyPatch.context() as patch, default(patch, place["backend"], place["isa"]):
        yield {"backend": place["backend"], "threads": place["threads"]}


@st.composite
def journeys(draw):
    """A rule with options, and places to stop at: (number of steps, how to leave, where)."""
    name, options = draw(st.sampled_from(CASES)).values
    number = st.floats(0, 2, allow_subnormal=False)
    extra = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "weight_decay": number,
                "decoupled_weight_decay": st.booleans(),
                "maximize": st.booleans(),
                "clip_value": st.none() | number,
                "clip_norm": st.none() | number,
                "grad_scale": number,
                "zero_grads": st.booleans(),
                "flush_denormals": st.booleans(),
                "nonfinite": st.sampled_from(["propagate", "skip"]),
            },
        )
    )
    # torch has no Lion, keeps mu_product of NAdam in float32, and its AdamW is decoupled whatever it loads.
    torch_too = name != "nadam" and hasattr(torch.optim, proptim.OPTIMIZERS[name].__name__)
    torch_too &= name != "adamw" or {**options, **extra}.get("decoupled_weight_decay", True)
    ways = [way for way in WAYS if way != "torch" or torch_too]
    legs = draw(
        st.lists(st.tuples(st.integers(0, 4), st.sampled_from(ways), st.sampled_from(PLACES)), min_size=1, max_size=4)
    )
    return name, {**options, **extra}, draw(st.sampled_from([np.float32, np.float64])), legs


def gradients(params, k):
    rng = np.random.default_rng(k)
    grads = {
        n: np.array(rng.standard_normal(p.shape) * 10.0 ** rng.integers(-6, 6), p.dtype) for n, p in params.items()
    }
    if k % 3 == 1:
        grads["b"] = None
    if k % 5 == 4:
        grads["w"][...] = np.inf
    return grads


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(journeys())
def test_resume_is_exact(journey):
    """However often a run is left and resumed, in whatever way and wherever, its bits are those of one run."""
    name, options, dtype, legs = journey
    shapes = {"w": (5, 7), "b": (), "u": (400,)}
    rng = np.random.default_rng(0)
    begin = {n: np.array(rng.standard_normal(shape), dtype) for n, shape in shapes.items()}
    with at({"backend": "numpy", "isa": None, "threads": 1}) as where, np.errstate(all="ignore"):
        whole = {n: p.copy() for n, p in begin.items()}
        once = proptim.OPTIMIZERS[name](whole, **options, **where)
        for k in range(sum(leg[0] for leg in legs)):
            once.step(gradients(whole, k), loss=LOSSES[k % len(LOSSES)])
    params, opt, k = begin, None, 0
    with tempfile.TemporaryDirectory() as folder:
        for steps, way, place in legs:
            with at(place) as where, np.errstate(all="ignore"):
                params = {n: p.copy() for n, p in params.items()}
                new = proptim.OPTIMIZERS[name](params, **options, **where)
                if opt is not None:
                    before = frozen(opt.state_dict())
                    WAYS[way](opt, new, Path(folder) / "state.npz")
                    if way != "torch":
                        assert frozen(new.state_dict()) == before
                opt = new
                for _ in range(steps):
                    opt.step(gradients(params, k), loss=LOSSES[k % len(LOSSES)])
                    k += 1
    for array in [*params.values(), *whole.values(), *arrays_of(opt), *arrays_of(once)]:
        array[np.isnan(array)] = np.nan  # the sign and payload of a NaN are not promised
    assert frozen([*params.values()]) == frozen([*whole.values()])
    assert frozen(opt.state_dict()["state"]) == frozen(once.state_dict()["state"])


def arrays_of(opt):
    """The state arrays themselves."""
    return [array for p in opt._stepper.parameters for array in p.state.values()]


@pytest.mark.parametrize("way", ["file", "state_dict"])
@pytest.mark.parametrize("stop", range(8))
def test_rounds_go_on(way, stop, tmp_path):
    """A run of step_param that is saved in the middle of a round continues its count and schedules."""

    def make(params):
        return proptim.SGD(params, lr=schedules.linear(1.0, 0.0, 5))

    def go(opt, keys):
        for key in keys:
            opt.step_param(key, np.ones(2))

    keys = ["a", "b", "c", "b", "a", "a", "c", "b"]
    whole, params = ({n: np.zeros(2) for n in "abc"} for _ in range(2))
    once, first = make(whole), make(params)
    go(once, keys)
    go(first, keys[:stop])
    second = make(params)
    WAYS[way](first, second, tmp_path / "state.npz")
    assert second.state_dict()["round"] == first.state_dict()["round"]
    go(second, keys[stop:])
    assert frozen([params, second.state_dict()]) == frozen([whole, once.state_dict()])


def test_skips_in_a_row_go_on(tmp_path):
    """Skips before the save count towards max_skips."""
    opt, twin = (proptim.SGD([np.ones(1)], nonfinite="skip", max_skips=2) for _ in range(2))
    for _ in range(2):
        opt.step([np.array([np.nan])])
    by_file(opt, twin, tmp_path / "state.npz")
    with pytest.raises(FloatingPointError, match="after 2 skips in a row"):
        twin.step([np.array([np.nan])])


def test_fixed_options_come_with_the_state():
    """Rprop's lr is the first step size: a loaded state brings its step sizes, and without one they begin with lr."""
    opt = proptim.Rprop([np.zeros(2)], lr=0.5)
    opt.step([np.ones(2)])
    loaded = opt.state_dict()
    twin = proptim.Rprop([np.zeros(2)], lr=0.125)
    loaded["param_groups"][0]["lr"] = 0.25
    twin.load_state_dict(loaded)
    assert twin.lr == 0.25
    assert (twin.state[0]["step_size"] == 0.5).all()
    twin.load_state_dict({**loaded, "state": {}})
    assert twin.lr == 0.25
    assert (twin.state[0]["step_size"] == 0.25).all()
    loaded["param_groups"][0]["lr"] = lambda step: 0.1
    before = frozen(twin.state_dict())
    with pytest.raises(ValueError, match="Invalid lr: a schedule"):
        twin.load_state_dict(loaded)
    assert frozen(twin.state_dict()) == before


def test_state_under_text_keys_is_not_lost():
    """A state_dict that went through JSON has its indices as text: refused, and not taken for one without state."""
    opt, params = small()
    loaded = opt.state_dict()
    loaded["state"] = {str(key): entry for key, entry in loaded["state"].items()}
    before = bits(opt, params)
    with pytest.raises(ValueError, match=r"state_dict has the state '0'; expected the keys in its groups: \[0, 1\]"):
        opt.load_state_dict(loaded)
    assert bits(opt, params) == before


# proptim train --resume ----------------------------------------------------------------------------------------------

RUN = [
    {"name": "none"}, {"name": 3}, {"seed": -1}, {"seed": "0"}, {"sizes": []}, {"sizes": [4]}, {"sizes": [4, 10**9, 3]},
    {"sizes": "8"}, {"sizes": [4.0, 6, 3]}, {"batch_size": 0}, {"batch_size": None}, {"digest": 1.5}, {"epochs": True},
    {"epochs": 0}, {"lr": None}, {"lr": "x"}, {"steps": []}, {"seconds": {}}, {"loss": [], "test_score": []},
    {"loss": ["x"]}, {"loss": 1.0}, {"test_score": []}, {"test_score": [[0.5]]}, {"more": 1}, {"task": "x"},
    {"task": 1}, {"loss": [float("nan")]},
]  # fmt: skip


@pytest.fixture
def kept(tmp_path):
    """The data of a run, and what it saved."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((30, 4)), y=np.arange(30) % 3)
    train = ["train", "--data", str(tmp_path / "data.npz"), "--hidden", "6", "--optimizer", "adam"]
    assert main([*train, "--epochs", "1", "--save", str(tmp_path / "run.npz")]) == 0
    return tmp_path / "run.npz", ["train", "--data", train[2], "--resume", str(tmp_path / "run.npz"), "--epochs", "3"]


def changed(path, change):
    """Rewrite a file with right checksums and a changed header."""
    members = unzipped(path.read_bytes())
    text = json.loads(np.load(io.BytesIO(members["rest.npy"])).tobytes())
    change(text)
    members["rest.npy"] = npy(np.frombuffer(json.dumps(text).encode(), np.uint8))
    path.write_bytes(packed(members))


def refused_run(capsys, path, command):
    capsys.readouterr()
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not SECRETS.search(err.replace(str(path), "FILE")), err
    return err.replace(str(path), "FILE").removeprefix("proptim train: ").strip()


@pytest.mark.parametrize("change", RUN, ids=str)
def test_hostile_runs(change, kept, capsys):
    """A run with an invalid value raises an error of one line with the name of the file."""
    path, command = kept
    changed(path, lambda header: header["run"].update(change))
    said = refused_run(capsys, path, command)
    assert re.fullmatch(r"FILE cannot be resumed \(it.*\); expected a file that --save wrote", said), said


def test_runs_that_do_not_fit(kept, capsys):
    """A run with other layers or the state of another optimizer raises an error with the name of the file."""
    path, command = kept
    whole = path.read_bytes()
    changed(path, lambda header: header["param_groups"][0].update(params=[0]))
    assert refused_run(capsys, path, command).startswith("FILE does not fit this Adam: group 0 of state_dict has 1 par")
    path.write_bytes(whole)
    changed(path, lambda header: header["run"].update(name="lion"))
    said = refused_run(capsys, path, [*command, "--optimizer", "lion"])
    assert said.startswith("FILE does not fit this Lion: state_dict is that of 'Adam'; expected one of Lion")
    path.write_bytes(whole)
    members = unzipped(whole)
    members["state/0/param.npy"] = npy(np.zeros((4, 6)))
    path.write_bytes(packed(members))
    said = refused_run(capsys, path, command)
    assert said == (
        "FILE cannot be resumed (its arrays are not the weights and biases of a network); expected a file that --save "
        "wrote"
    )
    path.write_bytes(whole[:-1])
    said = refused_run(capsys, path, command)
    assert said.startswith("FILE cannot be resumed (it is damaged or cut short")


# Files as a fuzzer makes them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus(path):
    """The files that the fuzzer starts from, and those with which it found errors."""
    assert path.stat().st_size < 2048
    fuzz_load.check(path.read_bytes())


@pytest.mark.parametrize("seed", range(20))
def test_mutations(seed):
    """A thousand changed files, checksums right and wrong: refused, or taken over and stepped on."""
    rng = random.Random(seed)
    taken = sum(fuzz_load.check(fuzz_load.mutate(rng)) for _ in range(1000))
    assert 0 < taken < 1000
