"""Fuzzing of Optimizer.load: a file raises ValueError and changes nothing, or is loaded and the optimizer steps.

To run it for five minutes, guided by coverage: `pip install atheris`, then in a folder for its findings

    python tests/fuzz/fuzz_load.py -max_total_time=300 -max_len=4096 FOUND tests/fuzz/corpus

Inputs are mutated in two ways: as bytes, and as archives whose checksums are corrected, because almost no other input
gets past the checksums. tests/test_checkpoint.py replays the corpus and mutations with fixed seeds.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

import proptim
from proptim import checkpoint

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*"))
FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
FILE = Path(FOLDER.name) / "state.npz"
TOKENS = [
    b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"[", b"]", b"{", b"}", b",", b"9" * 30,
    b"<f8", b"<f4", b">f8", b"|O", b"|u1", b"<c16", b"True", b"(2,)", b"()", b"(0,)", b"(1, 2)", b"(99999999999,)",
    b"state/0/exp_avg", b"state/1/exp_avg_sq", b"rest", b".npy", b"lr", b"params", b"step", b"round", b"PK\3\4",
    b"\xff\xff\xff\xff", b"\0\0\0\0", b"proptim checkpoint 2",
]  # fmt: skip


def make() -> tuple[proptim.Optimizer, list[np.ndarray]]:
    """The optimizer that the files of the corpus are of."""
    params = [np.array([1.0, -2.0]), np.zeros(())]
    return proptim.Adam(params, lr=0.5), params


def snapshot(opt: proptim.Optimizer, params: list[np.ndarray]) -> str:
    return repr((opt.state_dict(), opt.param_groups, [p.tobytes() for p in params]))


TARGET = make()
BEFORE = snapshot(*TARGET)


def check(data: bytes) -> bool:
    """Load a file; whether it was taken over. Anything but ValueError and a changed optimizer are errors."""
    global TARGET
    FILE.write_bytes(data)
    try:
        TARGET[0].load(FILE)
    except ValueError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert said.startswith(f"{FILE} "), said
        assert "expected" in said, said
        assert len(said) < 2000, said
        assert snapshot(*TARGET) == BEFORE, said
        return False
    opt, _ = TARGET
    TARGET = make()
    with np.errstate(all="ignore"):
        opt.step([np.ones(2), np.ones(())])
    return True


def mend(data: bytes) -> bytes:
    """Correct the checksums and lengths, so that the code after their checks is reached."""
    out, at = bytearray(data), 0
    while out[at : at + 4] == checkpoint.LOCAL and len(out) >= at + 30:
        named, extended = struct.unpack_from("<2H", out, at + 26)
        begin = at + 30 + named + extended
        following = [i for sign in (checkpoint.LOCAL, b"PK\1\2") if (i := out.find(sign, begin)) >= 0]
        end = min(following, default=len(out))
        if begin > end:
            break
        if extended == 20 and out[at + 22 : at + 26] == b"\xff" * 4:
            out[begin - 16 : begin] = struct.pack("<2Q", end - begin, end - begin)
        out[at + 14 : at + 18] = struct.pack("<L", zlib.crc32(out[begin:end]))
        at = end
    return bytes(out[:-8]) + b"%08x" % zlib.crc32(out[:-8])


def mutate(rng: random.Random, data: bytes | None = None) -> bytes:
    """A file of the corpus, or the given one, with some changes; mostly with corrected checksums."""
    out = bytearray(rng.choice(CORPUS).read_bytes() if data is None else data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        until = min(len(out), at + rng.choice((0, 1, 1, 2, 4, 8, 64)))
        kind = rng.randrange(4)
        if kind == 0:  # another byte
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:  # a word in the place of others
            out[at:until] = rng.choice(TOKENS)
        elif kind == 2:  # repeated or left out
            out[at:until] = out[at:until] * rng.choice((0, 2, 3))
        else:  # a number or name for one of the same length
            out[at:until] = rng.choice(TOKENS)[: until - at].ljust(until - at)
    return mend(bytes(out)) if rng.random() < 0.8 else bytes(out)


def one(data: bytes) -> None:
    """One run of the fuzzer: the bytes as they are, and with corrected checksums."""
    check(data)
    check(mend(data))


def main() -> None:
    import atheris

    for module in (checkpoint, proptim.optimizer, proptim._parameters, proptim._arrays, proptim.adam):
        for name, thing in list(vars(module).items()):
            if getattr(thing, "__module__", None) == module.__name__ and hasattr(thing, "__code__"):
                setattr(module, name, atheris.instrument_func(thing))

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 4 == 0:
            return atheris.Mutate(data, max_size)
        return mutate(random.Random(seed), data)[:max_size]

    atheris.Setup(sys.argv, one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
