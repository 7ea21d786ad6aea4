"""Files beside an ONNX file in which it keeps its weights (protobuf holds less than 2 GiB)."""

from pathlib import Path

import onnx


def weights_beside(path: str | Path) -> dict[str, int]:
    """The files that tensors lie in, as the ONNX file names them, and the bytes that each must have at least; empty where
    there are none, and where the file is none."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # protobuf's own exceptions differ between versions
        return {}
    found: dict[str, int] = {}
    for tensor in graph.initializer:
        said = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in said:
            told = [said.get(key, "0") for key in ("offset", "length")]
            end = sum(int(number) for number in told if number.isascii() and number.isdecimal() and len(number) < 20)
            found[said["location"]] = max(end, found.get(said["location"], 0))
    return found


def trouble(path: str | Path) -> str | None:
    """Why the weights of an ONNX file cannot be read from beside it, and what to do; None where they can."""
    folder = Path(path).resolve().parent
    for name, length in weights_beside(path).items():
        place = (folder / name).resolve()
        told = f"{path} keeps weights in {name}"
        if Path(name).is_absolute() or not place.is_relative_to(folder):
            return (
                f"{told}, outside its own folder, where ONNX Runtime reads none; put both into one folder and export it again"
            )
        if not place.is_file():
            return f"{told}, which is not beside it; copy both files together"
        if place.stat().st_size < length:
            return f"{told}, which ends before they do ({place.stat().st_size:,} of {length:,} bytes); copy both files again"
    return None
