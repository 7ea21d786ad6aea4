"""What a file is, by what is in it: its name says what somebody called it."""

import re
import zipfile
from pathlib import Path

from ...errors import SlimrankError

SAVE = "save model.state_dict() and take that file"
OTHERS = {  # how a file begins that is no checkpoint -> what it is, what to do
    b"version https://git-lfs": ("a pointer of Git LFS, not the weights", "fetch them with git lfs pull"),
    b"<": ("a web page, not the weights", "download the file itself"),
    b"\x89HDF": ("an HDF5 file, as Keras writes them", "slimrank reads PyTorch's checkpoints"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it first"),
    b"\xfd7zXZ": ("compressed with xz", "unpack it first"),
    b"BZh": ("compressed with bzip2", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it first"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "unpack it first"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it first"),
}
SAVED = (b"PK\x03\x04", b"\x80")  # of what torch.save writes: an archive, before 1.6 a pickle
TAR, SUM = 512, slice(148, 156)  # bytes of a tar header, and which of them hold their sum, as octal digits
DEFLATED = 4  # bytes out of each byte of an archive; torch.save does not compress
SPARE = 2**20  # bytes that any archive may hold


def is_safetensors(path: Path) -> bool:
    """Tell a .safetensors file by its content: the length of the header, then the header, a JSON object."""
    start = _start(path)
    return len(start) >= 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def is_onnx(path: Path) -> bool:
    """Tell an ONNX file by its name, or by its content: the version of its format comes first."""
    return (
        path.suffix.lower() == ".onnx" or re.match(rb"\x08[\x03-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]", _start(path)) is not None
    )


def refuse_others(path: Path) -> None:
    """Raise SlimrankError for a sound file of another kind, of which it says what to do."""
    start = _start(path).lstrip()
    known = next((told for magic, told in OTHERS.items() if start.startswith(magic)), None)
    names = [member.filename for member in _members(path)]
    if any(name.endswith("archive_format") for name in names):
        known = "an archive of torch.export", SAVE
    elif names and all(name.endswith(".npy") for name in names):
        known = "an archive of NumPy", SAVE
    elif _is_tar(_start(path, TAR)):
        known = "a tar archive", "unpack it first"
        if _start(path).startswith(b"sys_info\0"):
            known = "a checkpoint of PyTorch 0.1", "load it with torch.load, if it is yours, and save model.state_dict()"
    elif path.suffix.lower() == ".safetensors" and start.startswith(SAVED):
        known = "what torch.save writes, not safetensors", "if it is yours, call it .pt"
    if known is not None:
        raise SlimrankError(f"{path} is {known[0]}; {known[1]}")


def _is_tar(header: bytes) -> bool:
    """Tell the header of a tar archive, with or without a magic; Python's own look would unpack the file to see."""
    digits = header[SUM].strip(b" \0")
    total = sum(header) - sum(header[SUM]) + sum(b" " * 8)
    return len(header) == TAR and re.fullmatch(rb"[0-7]+", digits) is not None and int(digits, 8) == total


def check_archive(path: Path) -> bool:
    """Raise SlimrankError for an archive that would unpack to far more than it is; True for one of TorchScript."""
    members = _members(path)
    if not members and _start(path).startswith(SAVED[0]):
        raise SlimrankError(f"{path} is damaged or no PyTorch checkpoint; copy or make it again")
    unpacked, limit = sum(member.file_size for member in members), SPARE + DEFLATED * path.stat().st_size
    if unpacked > limit:
        raise SlimrankError(
            f"{path} would unpack to {unpacked:,} bytes, out of {path.stat().st_size:,}; torch.save writes no such file: "
            "make it again"
        )
    return any(member.filename.endswith("/constants.pkl") for member in members)


def _start(path: Path, size: int = 64) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []
