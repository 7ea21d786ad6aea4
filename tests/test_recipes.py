"""Recipes: every option stands in one, what is written reads back, bad ones are told by line, and a run repeats itself."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from slimrank import __version__
from slimrank.cli import COMMON, VERBS, main
from slimrank.compress.head.options import HeadOptions
from slimrank.compress.options import CompressOptions
from slimrank.compress.pruning.options import Cut
from slimrank.compress.recipes.recipe import HELD_BACK, SHIPPED, TABLES, read_recipe, with_words, written_recipe
from slimrank.compress.stages.options import PruneOptions
from slimrank.compress.training.recipe import Recipe
from slimrank.errors import SlimrankError, SlimrankWarning
from slimrank.evaluate.dataspec import DataSpec
from slimrank.evaluate.timing import Timing
from slimrank.option import built, options

from .golden.play import FILES, call

HOSTILE = "a]\n[prune]\nratio = 1"
DENSE = FILES / "dense.safetensors"


def test_a_recipe_holds_every_option_of_compress_once():
    offered = {*VERBS["compress"].options, *(name for tree in COMMON for name in options(tree))}
    held = [name for table in TABLES.values() for name in table]
    assert len(held) == len(set(held))
    assert {*held, *HELD_BACK} - {"checkpoint", "out"} == offered
    assert {"model", "model_arg", "state_dict", "trust_pickle", "download"} <= HELD_BACK


ASKED = {
    "as usual": (CompressOptions(), {}),
    "without labels": (CompressOptions(data=DataSpec(data="images:a b/\"c\"\\d\x7f\n\u2028é😀")), {}),
    "all kinds of values": (
        CompressOptions(
            data=DataSpec(data="folder:x", validation="test:0.2", limit=300, seed=7, workers=2),
            pruning=PruneOptions(ranker="l1", cut=Cut(latency=0.25, protect=("conv1", HOSTILE)), reconstruct=False),
            training=Recipe(lr=1e-05, augment="crop+flip", ema=0.999), epochs=2, seed=7, rivals=True,
            subspaces=HeadOptions(select="histogram", k1=0.9, k2="auto", rescore="auto"),
            timing=Timing(batch=(1, 4), threads=(1, 2)), head="gather",
        ),
        {"size": (224, 320), "mean": (0.5, 0.25, 0.125), "interpolation": "bicubic"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "reading"), ASKED.values(), ids=ASKED)
def test_what_is_written_reads_back(tmp_path, asked, reading):
    path = tmp_path / "recipe.toml"
    path.write_text(written_recipe(Path("a.pt"), asked, {"model": "m:f", **reading}), encoding="utf-8")
    found = read_recipe(str(path))
    back = built(CompressOptions(), found)
    data = None if asked.data is None else built(DataSpec(data=""), found)
    assert replace(back, data=data).to_dict() == asked.to_dict()
    assert {name: found[name] for name in reading} == reading
    assert "m:f" not in str(found)


@pytest.mark.parametrize("name", ["a\nseed = 3\n.pt", "\udcff.pt"], ids=["line-break", "not-utf-8"])
def test_no_name_of_a_file_writes_into_a_recipe(tmp_path, name):
    text = written_recipe(tmp_path / name, CompressOptions(data=DataSpec(data=f"folder:{name}")), {})
    assert tomllib.loads(text.encode().decode())["seed"] == 0


BAD = {
    "unknown": ("[prune]\n# pruning\n\nrato = 0.5\n", "line 4: no option 'rato' in [prune]; did you mean ratio?"),
    "dash": ("[prune]\nmax-drop = 0.5\n", "line 2: no option 'max-drop' in [prune]; did you mean max_drop?"),
    "other-table": ("[prune]\nlr = 0.5\n", "line 2: no option 'lr' in [prune]; it stands in [finetune]"),
    "no-table": ("\nratio = 0.5\n", "line 2: no option 'ratio' above the tables; it stands in [prune]"),
    "top": ("[prune]\nseed = 1\n", "it stands above the tables"),
    "table": ("seed = 1\n\n[prunes]\nratio = 0.5\n", "line 3: no table [prunes]; did you mean prune?"),
    "no-table-but-a-value": ("prune = 3\n", "line 1: 'prune' is a table"),
    "array-of-tables": ("[[prune]]\nratio = 0.5\n", "line 1: 'prune' is a table"),
    "dotted": ("prune.ratio = 0.5\nprune.rato = 1\n", "line 2: no option 'rato'"),
    "inline": ("seed = 1\nprune = {ratio = 0.5, rato = 1}\n", "line 2: no option 'rato'"),
    "looks-alike-in-text": ("[data]\ndata = '''\nrato = 3\n'''\n[prune]\r\nrato = 1", "line 6: no option 'rato'"),
    "type": ("[prune]\nratio = 0.5\nsteps = 'two'\n", "line 3: 'steps' in [prune] is 'two', must be a whole number"),
    "truth": ("[prune]\ndistill = 1\n", "line 2: 'distill' in [prune] is 1, must be true or false"),
    "truth-as-number": ("seed = true\n", "line 1: 'seed' above the tables is true, must be a whole number"),
    "date": ("[prune]\nratio = 2020-01-01\n", "must be a number"),
    "list": ("[timing]\n\nbatch = [1,\n  'a',\n 8]\n", "line 3: 'batch' in [timing] is [1, 'a', 8], must be a list of numbers"),
    "read": ("[specialize]\nk1 = 'coverage:x'\n", "line 2: 'k1' in [specialize] is 'coverage:x'"),
    "code": ("[prune]\nmodel = 'os:system'\n", "line 2: 'model' stays on the command line"),
    "code-in-a-table": ("[model_arg]\nname = 'x'\n", "line 1: 'model_arg' stays on the command line"),
    "download": ("[data]\ndownload = true\n", "line 2: 'download' stays on the command line"),
    "place": ("out = '/etc/passwd'\n", "line 1: 'out' stays on the command line"),
    "version": ("slimrank = 3\n", "line 1: 'slimrank' is 3, must be the version"),
    "half-written": ('[prune]\nscope = "lay', "is not TOML (Unterminated string"),
    "twice": ("[prune]\nratio = 0.5\nratio = 0.4\n", "is not TOML (Cannot overwrite a value (at line 3"),
    "nested": (f"a = {'[' * 3000}{']' * 3000}", "is not TOML (nested too deeply)"),
    "long": ("#" * 20_000, "larger than 16 KB"),
    "huge": (f"seed = {'9' * 5000}", "is not TOML"),
    "value": ("[prune]\nratio = 1.5\n", "--ratio is 1.5, must lie strictly between 0 and 1"),
    "contradiction": ("[prune]\nratio = 0.5\nmacs = 0.5\n", "one budget"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BAD.values(), ids=BAD)
def test_a_bad_recipe_is_told_in_one_line(tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_bytes(text.encode())
    outcome = call(f"compress {DENSE} --recipe bad.toml -o out")
    (line,) = outcome.error_lines()
    assert outcome.status == 1
    assert told in line
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("fastest-gpu", f"those that ship are {', '.join(SHIPPED)}"),
        ("no/such.toml", "No such file"),
        ("", "those that ship"),
        (".", "those that ship"),
        ("/dev/null", "is no file"),
        ("x" * 300, "those that ship"),
    ],
)
def test_a_recipe_that_is_not_there(tmp_path, word, told):
    outcome = call(f"compress {DENSE} -o {tmp_path}/out --recipe", word)
    (line,) = outcome.error_lines()
    assert outcome.status == 1
    assert told in line


def test_a_recipe_of_another_version_is_read_with_a_warning(tmp_path):
    (tmp_path / "r.toml").write_text('slimrank = "0.1"\nseed = 3\n')
    with pytest.warns(SlimrankWarning, match=rf"is of slimrank 0\.1, this is {__version__}"):
        assert read_recipe(f"{tmp_path}/r.toml") == {"seed": 3}


def test_words_go_before_the_recipe_and_a_budget_before_another():
    usual = {"macs": None, "ratio": None, "seed": 0, "ranker": None, "protect": None}
    recipe = {"macs": 0.5, "seed": 3, "ranker": "l1", "protect": ("a",)}
    assert with_words(usual, recipe, {"seed": 4, "ratio": 0.2, "protect": ["b"]}) == {
        "macs": None, "ratio": 0.2, "seed": 4, "ranker": "l1", "protect": ["b"],
    }  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_sound(name):
    """Also on pictures without labels, where it is made for them."""
    found = read_recipe(name)
    data = DataSpec(data="images:x" if name == "no-labels" else "digits")
    replace(built(CompressOptions(), found), data=data).check()


def test_a_recipe_is_not_written_over(tmp_path):
    (tmp_path / "recipe.toml").write_text("seed = 3\n")
    outcome = call(f"compress {DENSE} --recipe {tmp_path}/recipe.toml -o {tmp_path}")
    assert "is the file that is read" in outcome.error_lines()[0]
    assert (tmp_path / "recipe.toml").read_text() == "seed = 3\n"


def test_the_recipe_of_a_run_repeats_it_bit_for_bit(tmp_path):
    words = "--data digits --limit 200 --batch 1 --ratio 0.3 --epochs 1 --seed 3 --head gather --k2 6 --fit refit --ranker l1"
    assert main(["compress", str(DENSE), *words.split(), "-o", str(tmp_path / "first")]) == 0
    recipe = tmp_path / "first" / "recipe.toml"
    assert main(["compress", str(DENSE), "--recipe", str(recipe), "-o", str(tmp_path / "again")]) == 0
    first, again = tmp_path / "first", tmp_path / "again"
    assert (first / "slim.safetensors").read_bytes() == (again / "slim.safetensors").read_bytes()
    assert recipe.read_bytes() == (again / "recipe.toml").read_bytes()
    one, other = (json.loads((folder / "report.json").read_text())["options"] for folder in (first, again))
    assert one == other


def test_a_binary_file_is_no_recipe(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SlimrankError, match="is not TOML"):
        read_recipe(str(tmp_path / "r.toml"))
