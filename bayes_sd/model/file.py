"""The file of a fit: one netCDF, whole or not at all, which knows when it was changed."""

import hashlib
import io
import json
import os
from pathlib import Path

import xarray as xr

from bayes_sd.errors import InputError

KIND = "bayes_sd fit"  # of the file
FORMAT = 16  # raised when a reader must know
SEAL = b"bayes_sd sha256 "
SEAL_BYTES = len(SEAL) + 64
TABLES = ("runs", "verifiers", "drafters", "servers")
GROUPS = ("posterior", "acceptance", *TABLES)


def writable(path: Path) -> None:
    """Refuse a file that cannot be written, before minutes are spent on what goes into it."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the file to write.")


def write(tree: xr.DataTree, path: Path) -> Path:
    """Write a tree."""
    # Each table as one JSON text: a hundred variables take a second to read.
    texts = {n: json.dumps(tree[n].to_dataset().to_dict()) for n in TABLES}
    packed = {n: xr.DataTree(xr.Dataset({"json": text})) for n, text in texts.items()}
    content = bytes(tree.assign(packed).to_netcdf(engine="h5netcdf"))
    return write_whole(path, content + _seal(content))


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file whole, or leave what was there."""
    writable(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def read(path: Path) -> xr.DataTree:
    """The tree of a file; InputError if it is missing, damaged, no fit, or of another format."""
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    content, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    damaged = InputError(
        f"{path}: was changed or damaged after it was saved; take a copy that was not, or fit "
        "the runs again."
    )
    sealed = seal.startswith(SEAL)
    # Before it is read: the library may wait for ever on a damaged file.
    if sealed and seal != _seal(content):
        raise damaged
    try:
        with xr.open_datatree(io.BytesIO(content + seal), engine="h5netcdf") as opened:
            tree = opened.load()
    except Exception as error:  # of whichever library the content reaches
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a netCDF file of a fit ({reason}).") from None
    version, is_fit = tree.attrs.get("format"), str(tree.attrs.get("kind")) == KIND
    if is_fit and version != FORMAT:
        said = "an unknown format" if version is None else f"format {version}"
        reads = f"this version reads {FORMAT}: fit the runs again."
        raise InputError(f"{path}: was saved in {said}; {reads}")
    if not is_fit or any(group not in tree for group in GROUPS):
        raise InputError(f"{path}: a netCDF file, but not a fit saved by bayes_sd.")
    if not sealed:
        raise damaged
    tables = {name: json.loads(str(tree[name]["json"].item())) for name in TABLES}
    return tree.assign({n: xr.DataTree(xr.Dataset.from_dict(data)) for n, data in tables.items()})


def _seal(content: bytes) -> bytes:
    """What a saved fit ends with, behind all that netCDF reads: the hash of the rest."""
    return SEAL + hashlib.sha256(content).hexdigest().encode()
