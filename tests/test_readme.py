"""Every command and every Python block of README.md and docs/ runs, page by page, in a folder that holds the files it names.

A page's folder holds, of these, what its text mentions: resnet20.th and resnet18.pt (checkpoints), cifar10/ and
tiny-imagenet-200/ (a few images of each class), pruned.safetensors and tuned.safetensors (ResNet-20 with fewer filters), and of
packages that need not be installed lcnet.pth (timm) and hf-resnet/ (transformers), both with random weights.
"""

import contextlib
import doctest
import io
import json
import re
import shlex
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from slimrank.cli import VERBS, main

from .conftest import shared

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
PREPARED = ("resnet20.th", "resnet18.pt", "cifar10", "tiny-imagenet-200", "pruned.safetensors", "tuned.safetensors")

EXTRAS = {"lcnet.pth": "timm", "hf-resnet": "transformers"}


@dataclass
class Example:
    """A command as a page shows it, with the output below it; after it ran, how that went."""

    command: str
    output: list[str] = field(default_factory=list)
    status: object = None
    printed: str = ""


def examples(text: str) -> list[Example]:
    """The commands of a page, in order."""
    found: list[Example] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Example(line[2:]))
            else:
                found[-1].output.append(line)
    return found


EXAMPLES = {page: examples(text) for page, text in PAGES.items()}
TORCHRUN = re.compile(r"^torchrun --nproc-per-node \d+ -m (?=slimrank )")  # run in one process here: test_processes.py has two
SLIMRANK = {page: [e for e in some if TORCHRUN.sub("", e.command).startswith("slimrank ")] for page, some in EXAMPLES.items()}
CASES = [
    pytest.param(page, i, id=f"{page}-{i + 1}: {example.command}")
    for page, some in SLIMRANK.items()
    for i, example in enumerate(some)
]
BLOCKS = [
    pytest.param(page, block, id=f"{page}-{i + 1}")
    for page, text in PAGES.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
]


# -- the files that the pages name -----------------------------------------------------------------------------------


def few_cifar(source: Path, target: Path) -> None:
    """CIFAR-10 as a folder, with 40 training and 10 test images a class."""
    for split, n in (("train", 40), ("test", 10)):
        for folder in sorted((source / split).iterdir()):
            (target / split / folder.name).mkdir(parents=True)
            for picture in sorted(folder.iterdir())[:n]:
                shutil.copy(picture, target / split / folder.name)


def few_tiny_imagenet(archive: Path, parent: Path) -> None:
    """Tiny ImageNet as it is packed, with 5 training and 3 test images a class."""
    seen: Counter[str] = Counter()
    with tarfile.open(archive) as packed:
        for member in packed:
            folder = str(Path(member.name).parent)
            seen[folder] += member.isfile()
            if member.isfile() and seen[folder] <= (5 if "/train/" in folder else 3):
                packed.extract(member, parent, filter="data")


def from_extra(name: str, path: Path) -> None:
    """Save a network of timm or transformers; ImportError where the package is not installed."""
    if name == "lcnet.pth":
        import timm

        torch.save(timm.create_model("lcnet_050", num_classes=10).state_dict(), path)
    else:
        import transformers

        sizes = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "embedding_size": 16, "num_labels": 10}
        transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).save_pretrained(path)


@pytest.fixture(scope="session")
def prepare(tmp_path_factory, request) -> Callable[[str], Path]:
    """Make one of PREPARED, once a session; skips where this machine lacks what it is made of."""
    parent = tmp_path_factory.mktemp("prepared")

    def prepared(name: str) -> Path:
        path = parent / name
        if path.exists():
            return path
        if name == "resnet20.th":
            shutil.copy(request.getfixturevalue("resnet20"), path)
        elif name == "resnet18.pt":
            shutil.copy(request.getfixturevalue("resnet18"), path)
        elif name == "cifar10":
            few_cifar(request.getfixturevalue("cifar"), path)
        elif name in EXTRAS:
            with contextlib.suppress(ImportError):  # the commands that need it skip
                from_extra(name, path)
        elif name == "tiny-imagenet-200":
            few_tiny_imagenet(shared("data/tiny-imagenet-200.tar.gz"), parent)
        else:
            whole = str(prepared("resnet20.th"))
            assert main(["prune", whole, "--model", "resnet20-cifar", "--macs", "0.75", "-o", str(path)]) == 0
        return path

    return prepared


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory, prepare) -> Callable[[str], Path]:
    """The folder in which a page's examples run."""
    folders: dict[str, Path] = {}

    def folder(page: str) -> Path:
        if page not in folders:
            made = tmp_path_factory.mktemp(Path(page).stem)
            words = {word for e in SLIMRANK[page] for word in re.split(r"[\s:]", e.command)}
            for name in (*PREPARED, *EXTRAS):
                if name in words or f'"{name}"' in PAGES[page]:
                    (made / name).symlink_to(prepare(name))
            folders[page] = made
        return folders[page]

    return folder


@pytest.fixture
def in_folder(request, folder_of):
    """The working directory: the page's folder."""
    with contextlib.chdir(folder_of(request.node.callspec.params["page"])):
        yield


def missing(example: Example) -> str | None:
    """The package that a command here needs and that is not installed."""
    return next((package for name, package in EXTRAS.items() if name in example.command and not Path(name).exists()), None)


def run(example: Example) -> None:
    """Run one command of slimrank here: one epoch long where it trains, in short turns where it times files."""
    words = shlex.split(TORCHRUN.sub("", example.command))[1:]
    if "--epochs" in words:
        words[words.index("--epochs") + 1] = "1"
    if words[0] == "bench":
        words += ["--seconds", "0.2"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            example.status = main(words)
        except SystemExit as usage:
            example.status = usage.code
    example.printed = printed.getvalue()


# -- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(("page", "number"), CASES)
def test_command_runs(page, number):
    """Commands build on those above them, so these run first where only this one was asked for; each runs once."""
    for example in SLIMRANK[page][: number + 1]:
        if example.status is None and missing(example) is None:
            run(example)
    example = SLIMRANK[page][number]
    if (package := missing(example)) is not None:
        pytest.skip(f"{package} is not installed")
    assert example.status == 0, f"{example.command}\n{example.printed}"
    for line in example.output:
        if line.startswith("written: "):
            assert line in example.printed.splitlines()
    if example.command.startswith("slimrank inspect") and "--time" not in example.command:
        shown = "\n".join(example.output) + "\n"
        assert doctest.OutputChecker().check_output(shown, example.printed, doctest.ELLIPSIS), example.printed


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_python_runs(page, block):
    exec(block, {})


@pytest.mark.parametrize("end", ["slimrank demo", "-m pytest"])
def test_the_readme_has_its_two_commands(end):
    assert any("pip install" in e.command and e.command.endswith(end) for e in EXAMPLES["README.md"])


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8 * 1024


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_an_example(verb):
    commands = [e.command for some in EXAMPLES.values() for e in some]
    assert any(re.search(rf"\bslimrank {verb}(\s|$)", command) for command in commands)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "link"),
    [
        pytest.param(page, link, id=f"{page}: {link}")
        for page, text in PAGES.items()
        for link in dict.fromkeys(re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)))
        if "://" not in link
    ],
)
def test_links_lead_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    if anchor:
        assert anchor in anchors(target.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_the_readme_links_every_page(page):
    assert f"]({page})" in PAGES["README.md"]


def test_the_readme_table_has_the_figures_of_the_results():
    rows = "\n".join(re.findall(r"^\|.*$", PAGES["README.md"], re.M))
    results = "\n".join(re.findall(r"^\|.*$", PAGES["docs/results.md"], re.M))
    figures = set(re.findall(r"\d+\.\d+", rows))
    assert figures
    assert figures <= set(re.findall(r"\d+\.\d+", results))


# -- what the README says of the demo --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo with few images and epochs: budget and shapes are the README's, accuracy is not."""
    from slimrank.compress import demo
    from slimrank.evaluate.dataspec import DataSpec

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "GLYPHS", DataSpec(data="glyphs", limit=400))
        patch.setattr(demo, "EPOCHS", 1)
        return demo.prepare(tmp_path_factory.mktemp("demo") / "out", print).finish(print)


def test_demo(demo):
    """What the README promises of the demo, the clock and accuracy aside."""
    before, after = demo["baseline"], demo["compressed"]
    assert len(demo["classes"]) == 400
    assert after["macs"] <= 0.3 * before["macs"]
    stages = {s["name"]: s for s in demo["stages"]}
    assert stages["export"]["parity"]["agreement"] == 1.0
    assert stages["export"]["parity"]["images"] == demo["test_images"] == 400
    assert stages["prune"]["widths"].keys() == {"conv1", "conv2", "fc1"}  # fc2 is the head's
    assert stages["specialize"]["result"]["features"] == 512
    plain = next(r for r in stages["rivals"]["rows"] if r["name"].startswith("plain uniform"))
    assert abs(plain["macs"] / stages["prune"]["macs_after"] - 1) < 0.02
    assert demo["validation_seen_in_training"] is False


def test_the_picture_shows_the_recipes():
    """docs/front.svg has the networks of benchmarks/results/recipes.json, one point each for latency and for bytes."""
    picture = (ROOT / "docs" / "front.svg").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "benchmarks" / "results" / "recipes.json").read_text())["resnet18"]["rows"]
    assert picture.count('class="point"') == 2 * len(rows)
    for row in rows:
        others = {"dense": "dense", "float": f"{row['run']}, float", "rival": row["name"].split(",")[0]}
        name = others.get(row["kind"], row["run"]).replace("dense model", "dense, trained on")
        assert f"<title>{name}</title>" in picture
