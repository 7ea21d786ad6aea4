"""Would a test notice if the core computed something else? Each mutant is one changed place, and a test has to fail for it.

    python benchmarks/mutation.py --minutes 60

mutmut's operators change the files of CORE (an argument dropped or None, a number plus one, an operator swapped, a condition
forced, a value None and so on); prose, annotations and error messages are left alone. One pytest session collects the tests and
forks for each run of them. First the control: every test runs once by itself as it is, under coverage, and all run in a row as
they would for a mutant; what fails in either has no part, nor has what takes more than `--slowest` seconds of processor. Then
each mutant, put into the modules in memory, meets the tests that run the changed line, cheapest first, until one fails,
`--seconds` of them at most. The mutants come in an order drawn by `--seed`, so that those of the first `--minutes` are a fair
sample. A later run goes on in the same `--scratch`: what was measured or tried is not tried again.

results/mutation.json counts them (`commit`: how many were tried at which) and lists the survivors. `reason` is written there by
hand and kept by later runs: why no test can tell the mutant (`equivalent`: it computes the same, sooner or later), or why none
need to; without one it wants a test, and `--again` tries it anew.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from mutants import Mutant, install, mutants

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "benchmarks" / "results" / "mutation.json"
CORE = (
    *(f"compress/coalitions/{name}.py" for name in ("activations", "game", "powerset", "sites", "split", "suffix")),
    "compress/pruning/select.py", "compress/pruning/surgery.py", "compress/channels/slicing.py",
    "compress/head/fit.py", "evaluate/macs.py", "export/parity.py", "compress/pruning/reconstruct.py",
)  # fmt: skip
TESTS = (
    "coalitions", "split", "car", "switch", "shapley", "channels", "surgery", "selection", "budgets", "reconstruct",
    "reconstruct_rows", "rectified", "repair", "reconstruct_ranker", "export", "specialize", "matrix", "subspace",
    "layerwise", "onnx_macs", "head_timing", "probe", "fit", "macs",
)  # fmt: skip
DATA = {"cifar", "mnist", "resnet18"}  # fixtures that are too slow for a mutant
SURVIVED = (0, 98)  # statuses: no test failed, the mutant cannot be put in
MEMORY = 12 * 2**30  # bytes that a mutant may ask for
SILENCE = ("-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--rootdir", str(ROOT))


def forked(work: Callable[[], None], cpu_seconds: float) -> int:
    """Exit status of `work` in a process of its own, 0 where it returns; negative: the signal that ended it, or its limit."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = 99
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 1,) * 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY,) * 2)
            work()
            status = 0
        os._exit(status)
    ends = time.monotonic() + 30 + 40 * cpu_seconds  # a busy machine is no hang
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.005)
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(done[1])


def imported(names: list[str]) -> bool:
    """Import what is not yet; whether there was any."""
    new = [name for name in names if name not in sys.modules]
    for name in new:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return any(name in sys.modules for name in new)


class Log:
    """Rows of a file, one JSON object a line, each by its `key`."""

    def __init__(self, file: Path):
        self.file = file
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self.rows = {tuple(row["key"]) if isinstance(row["key"], list) else row["key"]: row for row in rows}

    def add(self, key: Any, row: dict[str, Any]) -> None:
        self.rows[key] = {"key": key, **row}
        with self.file.open("a") as file:
            print(json.dumps(self.rows[key]), file=file)


class Trial:
    """A pytest plugin that runs the session's tests as often as there are mutants.

    `seconds`, `lines`: of processor that each test takes, and the tests that run each line; only of tests that have a part.
    """

    def __init__(self, asked: argparse.Namespace):
        self.asked = asked
        self.ends = time.monotonic() + 60 * asked.minutes
        self.left_out: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = {path: defaultdict(set) for path in CORE}
        self.on_failure: Callable[[str], None] | None = None

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        collected = len(items)
        items[:] = [item for item in items if not DATA & set(item.fixturenames)]
        self.left_out["need data"] = collected - len(items)

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.control()
        self.all_mutants()
        return True

    def control(self) -> None:
        """Measure every test as it is; those that are slow or fail have no part."""
        measured = Log(self.asked.scratch / "tests.jsonl")
        for test in self.items:
            if test not in measured.rows:
                row = self.measured(test)
                if imported(row["modules"]):  # by this process now, so that no mutant has to wait for it
                    row = self.measured(test)
                measured.add(test, row)
                print(test, row["status"], row["seconds"], flush=True)
            imported(measured.rows[test]["modules"])
        found = {test: measured.rows[test] for test in self.items}
        failed = [test for test, row in found.items() if row["status"] > 0]
        slow = [test for test, row in found.items() if row["seconds"] > self.asked.slowest]
        alone = {test: row["seconds"] for test, row in found.items() if test not in {*failed, *slow}}
        failed_in_a_row = self.in_a_row(sorted(alone, key=lambda test: (alone[test], test)), sum(alone.values()))
        self.left_out |= {f"took over {self.asked.slowest:g} s": len(slow), "fail": failed, "fail in a row": failed_in_a_row}
        self.seconds = {test: spent for test, spent in alone.items() if test not in failed_in_a_row}
        for test in self.seconds:
            for path, lines in found[test]["lines"].items():
                for line in lines:
                    self.lines[path][line].add(test)
        print(f"\n{len(self.seconds)} tests, {sum(self.seconds.values()):.0f} s; left out: {self.left_out}", flush=True)

    def measured(self, test: str) -> dict[str, Any]:
        """Run a test by itself under coverage: its status, seconds, and lines of the core, and the modules it imports."""
        written = self.asked.scratch / "measured.json"
        written.unlink(missing_ok=True)
        status = forked(lambda: self.measure(test, written), self.asked.slowest + 3)  # to import what nobody has yet
        if written.exists():
            return {"status": status, **json.loads(written.read_text())}
        return {"status": status, "seconds": inf if status < 0 else 0.0, "lines": {}, "modules": []}

    def measure(self, test: str, written: Path) -> None:
        import coverage

        tracer = coverage.Coverage(data_file=None, include=[str(ROOT / path) for path in CORE])
        tracer.start()
        self.run([test], lambda _: os._exit(1))
        tracer.stop()
        lines = {path: tracer.get_data().lines(str(ROOT / path)) or [] for path in CORE}
        modules = [name for name in sys.modules if name.split(".")[0] not in ("slimrank", "__main__", "coverage")]
        written.write_text(json.dumps({"seconds": sum(os.times()[:4]), "lines": lines, "modules": modules}))

    def in_a_row(self, tests: list[str], seconds: float) -> list[str]:
        """Those that fail where others have run before them."""
        runs = Log(self.asked.scratch / "in_a_row.jsonl")
        if tuple(tests) not in runs.rows:
            written = self.asked.scratch / "failed.jsonl"
            written.write_text("")
            failures = Log(written)
            status = forked(lambda: self.run(tests, lambda test: failures.add(test, {})), 10 + 5 * seconds)
            assert status == 0, f"the tests in a row ended with status {status}"
            runs.add(tuple(tests), {"failed": list(Log(written).rows)})
        return list(runs.rows[tuple(tests)]["failed"])

    def all_mutants(self) -> None:
        tried = Log(self.asked.scratch / "tried.jsonl")
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        commit = head.stdout.strip()
        explained = survivors()
        work = [mutant for path in self.asked.files for mutant in mutants(ROOT, path)]
        random.Random(self.asked.seed).shuffle(work)  # so that those tried so far are a fair sample
        for number, mutant in enumerate(work):
            row = tried.rows.get(mutant.key)
            anew = (
                self.asked.again and row and row["status"] in SURVIVED and not explained.get(mutant.key[:3], {}).get("reason")
            )
            if time.monotonic() > self.ends or (row and not anew):
                continue
            began, tests = time.perf_counter(), self.who_runs(mutant)
            limit = 10 + 5 * sum(self.seconds[test] for test in tests)
            status = forked(lambda mutant=mutant, tests=tests: self.meet(mutant, tests), limit) if tests else 0
            tried.add(mutant.key, {"commit": commit, "line": mutant.lines.start, "status": status, "tests": len(tests)})
            spent = time.perf_counter() - began
            print(f"{number} of {len(work)} {mutant.path}:{mutant.lines.start} {status} {spent:.2f}", flush=True)
        report(work, tried.rows, self.asked, {"took_part": len(self.seconds), "left_out": self.left_out})

    def who_runs(self, mutant: Mutant) -> list[str]:
        """Tests that run a mutant's lines, cheapest first; at a file's own level all that run any of its lines."""
        lines = self.lines[mutant.path]
        found = {test for line in mutant.lines for test in lines[line]}
        found = found or {test for tests in list(lines.values()) for test in tests}
        chosen, seconds = [], 0.0
        for test in sorted(found, key=lambda test: (self.seconds[test], test)):
            seconds += self.seconds[test]
            if seconds > self.asked.seconds and chosen:
                break
            chosen.append(test)
        return chosen

    def meet(self, mutant: Mutant, tests: list[str]) -> None:
        """Run tests on a mutant; the process ends with status 1 where one fails, with 98 where the mutant cannot be put in."""
        try:
            killed = install(mutant)
        except Exception:  # of putting it in, whatever it is: told by the status
            os._exit(98)
        if killed:
            os._exit(1)
        self.run(tests, lambda _: os._exit(1))

    def run(self, tests: list[str], on_failure: Callable[[str], None]) -> None:
        self.on_failure = on_failure
        items = [self.items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if self.on_failure and report.failed:
            self.on_failure(report.nodeid)


def survivors() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Those of earlier runs, with their reasons."""
    old = json.loads(FILE.read_text())["survivors"] if FILE.exists() else []
    return {(row["path"], row["before"], row["after"]): row for row in old}


def report(
    work: list[Mutant], known: dict[tuple[Any, ...], dict[str, Any]], asked: argparse.Namespace, tests: dict[str, Any]
) -> None:
    """Write results/mutation.json, with the reasons that it has."""
    reasons = survivors()
    survived_rows: list[dict[str, Any]] = []
    counts = {path: Counter[str]() for path in (*asked.files, "all")}
    for mutant in work:
        row, equivalent = known.get(mutant.key), False
        survived = row is not None and row["status"] in SURVIVED
        if survived:
            told = reasons.get(mutant.key[:3], {})
            equivalent = told.get("equivalent", False)
            survived_rows.append(
                {"path": mutant.path, "line": mutant.lines.start, "before": mutant.before, "after": mutant.after,
                 "equivalent": equivalent, "reason": told.get("reason", "")}
            )  # fmt: skip
        for count in (counts[mutant.path], counts["all"]):
            count["mutants"] += 1
            count["tried"] += row is not None
            count["killed"] += row is not None and not survived
            count["stopped"] += row is not None and row["status"] < 0
            count["equivalent"] += equivalent
    for count in counts.values():
        tried = max(1, count["tried"])
        count["score"] = round(100 * count["killed"] / tried, 1)
        count["score_without_equivalent"] = round(100 * count["killed"] / max(1, tried - count["equivalent"]), 1)
    about = {
        "commit": Counter(known[mutant.key]["commit"] for mutant in work if mutant.key in known),
        "seed": asked.seed,
        "test_files": TESTS,
        "tests": tests,
        "seconds": asked.seconds,
        "mutmut": version("mutmut"),
        "torch": version("torch"),
    }
    survived_rows.sort(key=lambda row: (row["path"], row["line"]))
    listed = ",\n".join(map(json.dumps, survived_rows))
    rows = ",\n".join(f"{json.dumps(path)}: {json.dumps(count)}" for path, count in counts.items())
    FILE.write_text(f'{{"about": {json.dumps(about)},\n"files": {{\n{rows}\n}},\n"survivors": [\n{listed}\n]}}\n')
    print(*(f"{path}: {dict(count)}" for path, count in counts.items()), sep="\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--files", nargs="+", default=[*CORE])
    options.add_argument("--seconds", type=float, default=20.0, help="of tests that a mutant meets at most")
    options.add_argument("--slowest", type=float, default=3.0, help="seconds of processor that a test may take")
    options.add_argument("--minutes", type=float, default=float("inf"))
    options.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "slimrank-mutation")
    options.add_argument("--again", action="store_true", help="try survivors without a reason again")
    asked = options.parse_args()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    settings.register_profile("mutation", database=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")
    trial = Trial(asked)
    files = [f"tests/test_{name}.py" for name in TESTS]
    pytest.main([*SILENCE, "--basetemp", str(asked.scratch / "pytest"), *files], plugins=[trial])


if __name__ == "__main__":
    main()
