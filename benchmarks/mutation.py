"""Would a test notice if the core computed something else? Each mutant is one changed place, and a test has to fail for it.

    python benchmarks/mutation.py --minutes 30

mutmut's operators change the files of CORE (an argument dropped or None, a number plus one, an operator swapped, a condition
forced, a value None and so on); prose, annotations and error messages are left alone. Every test of TESTS runs once under
coverage; then each mutant meets those that run the changed line, cheapest first, until one fails, `--seconds` of them at most.
One pytest session collects the tests and forks for each mutant, which is put into the modules in memory. Tests that unpack
CIFAR-10 are left out, since a mutant would wait 5 s for them. The mutants come in an order drawn by `--seed`, so that those of
the first `--minutes` are a fair sample; those that were tried are not tried again (`--scratch`).

results/mutation.json counts them and lists the survivors. `reason` is written there by hand and kept by later runs: why no test
can tell the mutant (`equivalent`: it computes the same, sooner or later), or why none need to; without one it wants a test.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from mutants import Mutant, install, mutants

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CORE = (
    *(f"compress/coalitions/{name}.py" for name in ("activations", "game", "powerset", "sites", "split", "suffix")),
    "compress/pruning/select.py", "compress/pruning/surgery.py", "compress/channels/slicing.py",
    "compress/head/fit.py", "evaluate/macs.py", "export/parity.py", "compress/pruning/reconstruct.py",
)  # fmt: skip
TESTS = (
    "coalitions", "car", "switch", "shapley", "channels", "surgery", "selection", "budgets", "reconstruct", "repair",
    "reconstruct_ranker", "export", "specialize", "matrix", "subspace", "layerwise", "onnx_macs", "head_timing", "probe",
    "fit", "macs",
)  # fmt: skip
DATA = {"cifar", "mnist", "resnet18"}  # fixtures that are too slow for a mutant
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


class Recorder:
    """A pytest plugin: which lines each test runs, and its seconds of processor, those of its shared fixtures among them."""

    def __init__(self, coverage: Any):
        self.coverage = coverage
        self.seconds: Counter[str] = Counter()
        self.fixtures: Counter[tuple[str, str]] = Counter()
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)[-2000:]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        self.coverage.switch_context(item.nodeid)
        shared, began = self.fixtures.total(), time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - began - (self.fixtures.total() - shared)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        began = time.process_time()
        result = yield
        if fixturedef.scope != "function":
            self.fixtures[fixturedef.argname, repr(getattr(request, "param", None))] += time.process_time() - began
        return result

    def told(self, item: Any) -> float:
        """Seconds of a test that runs alone."""
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return self.seconds[item.nodeid] + sum(self.fixtures[n, repr(params.get(n))] for n in item.fixturenames)


class Trial:
    """A pytest plugin that runs the session's tests as often as there are mutants."""

    def __init__(self, asked: argparse.Namespace):
        self.asked = asked
        self.ends = time.monotonic() + 60 * asked.minutes

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if not DATA & set(item.fixturenames)]

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.lines: dict[str, dict[int, set[str]]] = {path: defaultdict(set) for path in CORE}
        self.seconds: dict[str, float] = {}
        modules: set[str] = set()
        for file in dict.fromkeys(item.path for item in session.items):
            saved = self.asked.scratch / f"{file.stem}.json"
            if not saved.exists():
                forked(lambda file=file, saved=saved: self.record(session, file, saved), 1800)
            told = json.loads(saved.read_text())
            print(file.name, f"{sum(told['seconds'].values()):.1f} s", *told["failed"].values(), flush=True)
            self.seconds |= told["seconds"]
            modules |= set(told["modules"])
            for path, lines in told["lines"].items():
                for line, tests in lines.items():
                    self.lines[path][int(line)] |= set(tests) & set(self.items) - set(told["failed"])
        print(f"\n{len(self.seconds)} tests, {sum(self.seconds.values()):.0f} s", flush=True)
        for name in sorted(modules):  # what tests import late, a mutant would import each time
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self.all_mutants()
        return True

    def record(self, session: Any, file: Path, saved: Path) -> None:
        """Run a file's tests under coverage."""
        import coverage

        tracer = coverage.Coverage(data_file=None, include=[str(ROOT / path) for path in CORE])
        recorder = Recorder(tracer)
        session.config.pluginmanager.register(recorder)
        items = [item for item in session.items if item.path == file]
        tracer.start()
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        tracer.stop()
        data = tracer.get_data()
        lines = {path: data.contexts_by_lineno(str(ROOT / path)) for path in CORE}
        seconds = {item.nodeid: recorder.told(item) for item in items}
        modules = [name for name in sys.modules if name.split(".")[0] not in ("slimrank", "__main__", "coverage")]
        saved.write_text(json.dumps({"lines": lines, "seconds": seconds, "modules": modules, "failed": recorder.failed}))

    def all_mutants(self) -> None:
        tries = self.asked.scratch / "tried.jsonl"
        rows = [json.loads(line) for line in tries.read_text().splitlines()] if tries.exists() else []
        self.known = {tuple(row["key"]): row for row in rows}
        work = [mutant for path in self.asked.files for mutant in mutants(ROOT, path)]
        random.Random(self.asked.seed).shuffle(work)  # so that those tried so far are a fair sample
        for number, mutant in enumerate(work):
            row = self.known.get(mutant.key)
            if time.monotonic() > self.ends or (row and not (self.asked.again and row["status"] in (0, 98))):
                continue
            began, tests = time.perf_counter(), self.who_runs(mutant)
            limit = 10 + 5 * sum(self.seconds[test] for test in tests)
            status = forked(lambda mutant=mutant, tests=tests: self.meet(mutant, tests), limit) if tests else 0
            row = {"key": mutant.key, "line": mutant.lines.start, "status": status, "tests": len(tests)}
            self.known[mutant.key] = row
            with tries.open("a") as file:
                print(json.dumps(row), file=file)
            spent = time.perf_counter() - began
            print(f"{number} of {len(work)} {mutant.path}:{mutant.lines.start} {status} {spent:.2f}", flush=True)
        report(work, self.known, self.asked)

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
        items = [self.items[test] for test in tests]
        self.meeting = True
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if getattr(self, "meeting", False) and report.failed:
            os._exit(1)


def report(work: list[Mutant], known: dict[tuple[Any, ...], dict[str, Any]], asked: argparse.Namespace) -> None:
    """Write results/mutation.json, with the reasons that it has."""
    file = RESULTS / "mutation.json"
    old = json.loads(file.read_text())["survivors"] if file.exists() else []
    reasons = {(row["path"], row["before"], row["after"]): row for row in old}
    survivors, counts = [], {path: Counter[str]() for path in (*asked.files, "all")}
    for mutant in work:
        row, equivalent = known.get(mutant.key), False
        survived = row is not None and row["status"] in (0, 98)
        if survived:
            told = reasons.get(mutant.key[:3], {})
            equivalent = told.get("equivalent", False)
            survivors.append(
                {"path": mutant.path, "line": mutant.lines.start, "before": mutant.before, "after": mutant.after,
                 "equivalent": equivalent, "reason": told.get("reason", "")}
            )  # fmt: skip
        for count in (counts[mutant.path], counts["all"]):
            count["mutants"] += 1
            count["tried"] += row is not None
            count["killed"] += row is not None and not survived
            count["equivalent"] += equivalent
    for count in counts.values():
        tried = max(1, count["tried"])
        count["score"] = round(100 * count["killed"] / tried, 1)
        count["score_without_equivalent"] = round(100 * count["killed"] / max(1, tried - count["equivalent"]), 1)
    about = {
        "seed": asked.seed,
        "tests": TESTS,
        "seconds": asked.seconds,
        "mutmut": version("mutmut"),
        "torch": version("torch"),
    }
    survivors.sort(key=lambda row: (row["path"], row["line"]))
    listed = ",\n".join(map(json.dumps, survivors))
    rows = ",\n".join(f"{json.dumps(path)}: {json.dumps(count)}" for path, count in counts.items())
    file.write_text(f'{{"about": {json.dumps(about)},\n"files": {{\n{rows}\n}},\n"survivors": [\n{listed}\n]}}\n')
    print(*(f"{path}: {dict(count)}" for path, count in counts.items()), sep="\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--files", nargs="+", default=[*CORE])
    options.add_argument("--seconds", type=float, default=20.0, help="of tests that a mutant meets at most")
    options.add_argument("--minutes", type=float, default=float("inf"))
    options.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "slimrank-mutation")
    options.add_argument("--again", action="store_true", help="try survivors again, after new tests")
    asked = options.parse_args()
    asked.scratch.mkdir(exist_ok=True)
    os.chdir(ROOT)
    settings.register_profile("mutation", database=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")
    trial = Trial(asked)
    files = [f"tests/test_{name}.py" for name in TESTS]
    pytest.main([*SILENCE, "--basetemp", str(asked.scratch / "pytest"), *files], plugins=[trial])


if __name__ == "__main__":
    main()
