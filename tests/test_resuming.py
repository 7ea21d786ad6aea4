"""A compress run that is killed goes on, skips what ended, and comes to the same result; a damaged folder is refused."""

import json
import signal
import subprocess
import sys
import time

import pytest

from slimrank.compress import pipeline
from slimrank.compress.options import Options
from slimrank.errors import SlimrankError


@pytest.mark.parametrize("after", [1, 5])
def test_compress_killed_goes_on(tmp_path, trained, after):
    """SIGKILL after a number of stages; the second run skips them and ends with the same decisions."""
    out = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "slimrank.cli",
        "compress",
        trained,
        "--data",
        "digits",
        "--epochs",
        "2",
        "--batch",
        "1",
        "-o",
        out,
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        state = out / "state.json"
        if state.exists() and len(json.loads(state.read_text())["stages"]) >= after:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = json.loads((out / "state.json").read_text())["stages"]
    second = subprocess.run(words, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("    done     ") == len(done)
    report = json.loads((out / "report.json").read_text())
    assert report["stages"][: len(done)] == done
    assert len(report["stages"]) == 8


def test_trials_of_a_killed_compress_are_not_run_again(tmp_path, trained, monkeypatch):
    """Killed in the third trial of --max-drop: two are remembered, and the end is that of a run never stopped."""
    runs, tune = [], pipeline.Run.tune

    def counted(self, *words, **more):
        runs.append(more)
        if stop_at and len(runs) == stop_at:
            raise KeyboardInterrupt
        return tune(self, *words, **more)

    monkeypatch.setattr(pipeline.Run, "tune", counted)
    options = Options(data="digits", max_drop=0.1, epochs=1, lr=0.05, batch=(1,))
    stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        pipeline.start(trained, tmp_path / "killed", options).finish()
    kept = tmp_path / "killed" / "stages" / "trials.json"
    told = kept.read_text()
    for wrong in ('{"0.5": 99.0}', '{"0.5": "0.9"}', '{"0.5": NaN}', "[1]", told[:9]):
        kept.write_text(wrong)
        with pytest.raises(SlimrankError, match="remove it, and its trials are run again"):
            pipeline.start(trained, tmp_path / "killed", options).finish()
    kept.write_text(told)
    stop_at, runs[:] = 0, []
    again = pipeline.start(trained, tmp_path / "killed", options).finish()
    second, runs[:] = len(runs), []
    whole = pipeline.start(trained, tmp_path / "whole", options).finish()
    assert second == len(runs) - 2
    cuts = [next(s for s in report["stages"] if s["name"] == "prune") for report in (again, whole)]
    assert cuts[0]["trials"] == cuts[1]["trials"]
    assert cuts[0]["keep"] == cuts[1]["keep"]
    lied = tmp_path / "lied" / "stages" / "trials.json"
    lied.parent.mkdir(parents=True)
    lied.write_text(json.dumps({str(1 / 2**n): 1.0 for n in range(1, 5)}))  # each cut looks harmless: the deepest is taken
    tuned = next(s for s in pipeline.start(trained, tmp_path / "lied", options).finish()["stages"] if s["name"] == "finetune")
    assert "more than --max-drop 0.1 allows" in tuned["says"]
    (tmp_path / "whole" / "state.json").write_text('{"asked": [], "stages": []}')
    with pytest.raises(SlimrankError, match="remove the folder"):
        pipeline.start(trained, tmp_path / "whole", options)
