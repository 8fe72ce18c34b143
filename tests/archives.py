"""Checkpoints taken apart and put together again, for tests of what the readers refuse."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members, seal=True, **options):
    """An archive with right checksums of whatever members: name -> content, or pairs of them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = b"-" * 8
    whole = file.getvalue()[:-8]
    return whole + (b"%08x" % zlib.crc32(whole) if seal else b"00000000")


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()
