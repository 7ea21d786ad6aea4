"""What a network's filters and features mean: one pass of every measure, a dict for JSON and pictures for a page.

Classes are told from what the classifier reads (classwise.py), filters from CAR (rankers/car.py), colour, redundancy and the
images that move them (filterwise.py), concepts by dissection (evaluate/concepts/), gates where the checkpoint has them.
Features are learnt on training images; noise and gates are measured on test images; filters on validation images.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.concepts import Concepts, Dissection, dissect, generate
from ...evaluate.data import Data, Images, readable
from ...evaluate.pages import pictures
from ...evaluate.pages.explain import explain_page
from ...files import ready, write_json, write_text
from ..channels.features import Moments, Votes, classifier, features, survey
from ..channels.groups import ChannelMap
from ..channels.tracing import channel_map
from ..head.options import default_k
from ..network.checkpoint import Checkpoint
from ..rankers import car
from ..rankers.scores import FilterScores
from ..training import gates
from .classes import Means, class_features, noise_test, overlap
from .filters import Survey, colour_order, kernel_colour, redundancy
from .filters import survey as watched
from .responses import Responses

LAYERS = 4  # groups that are looked at unless --layer names others
IMAGES = 500  # validation images that filters are scored and watched on, without --limit
FEW = 10  # images a class, fewer say little of one
GENERATED = 1000  # images of --concepts generated
BEST, WORST, SHOWN, TOP = 6, 3, 4, 5  # filters in pictures, images that their maps are shown on, images that move one most
Say = Callable[[str], None]


@dataclass(frozen=True)
class ExplainOptions:
    """`k1` votes an image, `k2` features a class (None: an eighth, at least 5); `layers`: any members of conv groups;
    `concepts`: a folder in Broden's layout, or `generated`."""

    k1: int | None = None
    k2: int | None = None
    layers: list[str] | None = None
    concepts: str | None = None
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Explanation:
    """`found`: everything, for JSON; `shown[layer]` and `kernels`: pictures as data URIs, for the page."""

    found: dict[str, Any]
    shown: dict[str, dict[str, Any]] = field(repr=False)
    kernels: str | None = field(repr=False, default=None)

    def __str__(self) -> str:
        f = self.found
        lines = [f"{f['model']}: {f['seconds']:.0f} s"]
        if f.get("classes"):
            noise, sets = f["noise"], f["overlap"]
            lines += [
                f"  {f['k2']} influential features a class (k1={f['k1']}) of {f['features']}; mean mutual information of two "
                f"classes' sets {sets['all_pairs']:.4f} nats, {sets['different_classes']:.4f} of different classes "
                f"(random sets {sets['chance']:.4f})",
                f"  noise test, mean accuracy of a class: {noise['mean_whole']:.4f} as it is, "
                f"{noise['mean_influential_replaced']:.4f} with its influential features replaced, "
                f"{noise['mean_random_replaced']:.4f} with as many random ones, "
                f"{noise['mean_others_replaced']:.4f} with all others",
            ]
        if f.get("gates"):
            lines.append(
                f"  gates: density {f['gates']['density']:.3f}, top-1 {f['gates']['top1']:.4f} plain, "
                f"{f['gates']['top1_gated']:.4f} gated (given the true class), {f['gates']['top1_own']:.4f} by each class's own"
            )
        lines.append(
            f"  {'layer':28} filters  serves most                      colour  pruned repeat kept (kept among themselves)"
        )
        for name, layer in f["layers"].items():
            best = layer["filters"][layer["order"][-1]]
            serves = f"{layer['order'][-1]}: {', '.join(c for c, _ in best['serves'][:2]) or 'no class'}"
            colour = "      -" if layer["mean_colour"] is None else f"{layer['mean_colour']:7.3f}"
            both = [layer["redundancy"][k] for k in ("mean_pruned", "mean_kept")]
            alike = " ".join("    -" if v is None else f"{v:.3f}" for v in both)
            lines.append(f"  {name:28} {len(layer['filters']):7}  {serves:30.30} {colour}  {alike}")
        if f.get("dissection"):
            lines.append(f["dissection"]["table"])
        return "\n".join([*lines, *(f"  note: {note}" for note in f["notes"])])


def explain(checkpoint: Checkpoint, data: Data, options: ExplainOptions, say: Say = lambda line: None) -> Explanation:
    """Every measure that the network and the data allow; what they do not is named in `notes`, and the rest goes on."""
    began = time.perf_counter()
    checkpoint = checkpoint.with_classes(data)
    checkpoint.model.to(options.device)
    channels = channel_map(checkpoint.model, checkpoint.example())
    notes: list[str] = []
    _check_ks(options, checkpoint.model, channels)
    layers = _layers(checkpoint, channels, options.layers, notes)
    responses = Responses(checkpoint.model, channels, layers)
    concepts = _concepts(options)  # bad input shows before long work
    names = readable(data)
    found: dict[str, Any] = {"model": checkpoint.name, "data": data.spec, "class_names": names, "class_ids": data.classes}
    found |= _classes(checkpoint, data, channels, options, notes, say)
    say("filters: class-wise CAR, colour, redundancy, images")
    images = data.split("validation")
    if data.limit is None and len(images) > IMAGES:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))
        images = images.subset(order[:IMAGES].sort().values)
    scores = car.rank(
        checkpoint.model, channels, images.batches(device=options.device), classes=len(data.classes), layers=layers
    )
    notes += [note for note in scores.notes or [] if "car_by_class" not in note]  # the next one says it better
    if len(images) < FEW * len(data.classes):
        each = len(images) / len(data.classes)
        notes.append(f"{each:.1f} validation images a class: what a filter does to one class is coarse; raise --limit")
    seen = watched(responses, images.batches(device=options.device), checkpoint.preprocessing, TOP)
    found["validation_seen_in_training"] = checkpoint.validation_seen(data)
    found |= {"validation": data.validation_from, "filter_images": seen.images}
    found["layers"] = {name: _layer(name, scores, seen, checkpoint, channels, names) for name in layers}
    if seen.colour is None:
        notes.append("the network reads grey images: there is no colour part")
    if concepts is not None:
        say(f"dissection: {len(concepts):,} images, {len(concepts.names)} concepts")
        told = dissect(responses, concepts, checkpoint.preprocessing)
        found["dissection"] = {**told.to_dict(), "table": str(told)}
        _label(found["layers"], told)
    shown = {name: _pictures(found["layers"][name], name, seen, responses, images) for name in layers}
    first = next((n for n, m in checkpoint.model.named_modules() if isinstance(m, nn.Conv2d)), None)
    found["kernel_order"] = "Most important first." if first in layers else "In the network's order."
    found |= {"notes": notes, "seconds": round(time.perf_counter() - began, 1)}
    return Explanation(found, shown, _kernels(checkpoint.model.get_submodule(first), found["layers"], first) if first else None)


def _check_ks(options: ExplainOptions, model: nn.Module, channels: ChannelMap) -> None:
    m = len(channels.reads[channels.classifier])
    for name, k in (("k2", options.k2), ("k1", options.k1)):
        if k is not None and not 1 <= k <= m:
            raise SlimrankError(f"--{name} is {k}, the classifier reads {m} features; choose 1 to {m}")


def _layers(checkpoint: Checkpoint, channels: ChannelMap, named: list[str] | None, notes: list[str]) -> list[str]:
    """The groups to look at: those named, or the first, the last and some between that answer with maps (not 1x1)."""
    if named:
        return channels.chosen(named)
    model = checkpoint.model
    every = []
    for name in channels.chosen(None):
        if isinstance(model.get_submodule(name), nn.Conv2d):
            try:
                maps = Responses(model, channels, [name])(checkpoint.example())[name]
            except SlimrankError:
                continue
            if maps.dim() == 4 and maps[0, 0].numel() > 1:
                every.append(name)
    if not every:
        raise SlimrankError("no conv layer of this network answers with maps and can be masked alone; see `slimrank inspect`")
    places = np.unique(np.linspace(0, len(every) - 1, min(LAYERS, len(every))).round().astype(int))
    if len(every) > LAYERS:
        notes.append(f"{len(places)} of {len(every)} filter groups were looked at; name others with --layer")
    return [every[i] for i in places]


def _concepts(options: ExplainOptions) -> Concepts | None:
    if options.concepts is None:
        return None
    if options.concepts != "generated":
        return Concepts(options.concepts)
    folder = tempfile.TemporaryDirectory()
    made = Concepts(generate(folder.name, GENERATED, seed=options.seed))
    made.temporary = folder  # lives as long as the concepts do
    return made


def _classes(
    checkpoint: Checkpoint, data: Data, channels: ChannelMap, options: ExplainOptions, notes: list[str], say: Say
) -> dict[str, Any]:
    """What each class lives on; empty, with a note, where the classifier is not one linear layer."""
    try:
        layer, linear = classifier(checkpoint.model, channels)
    except SlimrankError as error:
        notes.append(f"no class part: {error}")
        return {}
    m, classes = linear.in_features, len(data.classes)
    k2 = default_k(m) if options.k2 is None else options.k2
    k1 = k2 if options.k1 is None else options.k1
    say("classes: influential features, overlap, noise")
    votes, means, moments = Votes(classes, k1), Means(classes), Moments()
    train = data.split("train")
    survey(features(checkpoint.model, layer, train.batches(device=options.device)), votes.add, means.add, moments.add)
    empty = [data.classes[i] for i in (votes.images == 0).nonzero().flatten().tolist()]
    if empty:
        notes.append(f"{len(empty)} classes have no training images ({', '.join(empty[:3])}): they take what all vote for")
    chosen = votes.choose(k2)
    test = data.split("test").batches(device=options.device)
    noise = noise_test(features(checkpoint.model, layer, test), linear, chosen, moments, options.seed)
    found: dict[str, Any] = {
        "classifier": layer, "features": m, "k1": k1, "k2": k2, "train_images": len(train),
        "test_images": len(data.split("test")),
        "classes": [asdict(c) for c in class_features(readable(data), linear, votes, means, k2)],
        "overlap": asdict(overlap(chosen, m, options.seed)), "noise": noise.to_dict(),
    }  # fmt: skip
    if checkpoint.gates is not None:
        if tuple(checkpoint.gates.shape) != (m, classes):
            notes.append(
                f"the gates are of {tuple(checkpoint.gates.shape)} features and classes, the classifier has {(m, classes)}"
            )
            return found
        told = gates.measure(checkpoint.model, layer, checkpoint.gates, test, classes)
        index = gates.choose(checkpoint.gates, linear.weight.detach().cpu(), k2)
        sets = {"indices": index.tolist(), "overlap": asdict(overlap(index, m, options.seed))}
        found["gates"] = {**told.to_dict(), **sets}
    return found


def _layer(
    name: str, scores: FilterScores, seen: Survey, checkpoint: Checkpoint, channels: ChannelMap, classes: list[str]
) -> dict[str, Any]:
    """One group of filters, for JSON: `order` is CAR's, pruned first to last."""
    module = checkpoint.model.get_submodule(name)
    first = next(n for n, m in checkpoint.model.named_modules() if isinstance(m, nn.Conv2d))
    colour: Tensor | None = None if seen.colour is None else seen.colour[name]
    rule = "1 - response to grey / response to colour"
    if colour is not None and name == first and isinstance(module, nn.Conv2d) and module.in_channels == 3:
        colour, rule = (
            kernel_colour(module.weight.detach().cpu()),
            "energy of the kernel that its mean over RGB does not explain",
        )
    order = scores.order(name)
    pruned = order[: max(1, len(order) // 4)]
    by_class = (scores.car_by_class or {}).get(name)
    filters = []
    for unit in range(len(order)):
        losses = [] if by_class is None else [(classes[c], v) for c, v in enumerate(by_class[unit]) if v is not None]
        ranked = sorted(losses, key=lambda item: -item[1])
        filters.append({
            "car": scores.scores[name][unit], "car_by_class": None if by_class is None else by_class[unit],
            "serves": [(c, round(v, 4)) for c, v in ranked[:3] if v > 0],
            "hinders": [(c, round(v, 4)) for c, v in ranked[::-1][:3] if v < 0],
            "colour": None if colour is None else round(float(colour[unit]), 4),
            "response": float(seen.response[name][unit]), "top_images": seen.top[name][unit].tolist(),
        })  # fmt: skip
    told = None if colour is None else asdict(colour_order(colour.float(), order, len(pruned)))
    return {
        "filters": filters, "order": order, "tied": list(channels.group(name).layers), "pruned": len(pruned),
        "mean_colour": None if colour is None else round(float(colour.mean()), 4),
        "colour_rule": None if colour is None else rule,
        "colour_under_car": told, "redundancy": asdict(redundancy(seen.correlation[name], pruned)),
    }  # fmt: skip


def _label(layers: dict[str, dict[str, Any]], told: Dissection) -> None:
    """Each filter's concept beside its CAR."""
    for name, layer in layers.items():
        for unit, (concept, category, iou) in zip(layer["filters"], told.layers[name].units, strict=True):
            unit["concept"] = {"name": concept, "category": category, "iou": iou}


def _pictures(layer: dict[str, Any], name: str, seen: Survey, responses: Responses, images: Images) -> dict[str, Any]:
    """Maps of the most and least important filters on images of different classes; the images that move each most."""
    order = layer["order"]
    worst, best = order[: min(WORST, len(order) // 2)], order[::-1][:BEST]
    labels = images.labels.tolist()
    firsts = [labels.index(c) for c in sorted(set(labels))]
    chosen = [firsts[i] for i in np.linspace(0, len(firsts) - 1, min(SHOWN, len(firsts))).round().astype(int)]
    pixels = images.pixels(torch.tensor(chosen))
    maps = responses(images.preprocessing.normalise(pixels))[name]
    tops = maps.amax((0, 2, 3))
    rows = [
        [pictures.photograph(p.numpy()), *(pictures.heat(maps[i, u].numpy(), float(tops[u])) for u in best), None]
        + [pictures.heat(maps[i, u].numpy(), float(tops[u])) for u in worst]
        for i, p in enumerate(pixels)
    ]
    strips = {}
    for unit in (*best, *worst):
        some = images.pixels(seen.top[name][unit])
        strips[unit] = pictures.uri(pictures.montage([[pictures.photograph(p.numpy()) for p in some]], 48, smooth=True), True)
    return {"maps": pictures.uri(pictures.montage(rows, 56)), "best": best, "worst": worst, "strips": strips}


def _kernels(conv: nn.Module, layers: dict[str, dict[str, Any]], name: str) -> str | None:
    """First-layer kernels, most important first where CAR has looked at them."""
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.detach().cpu().numpy()
    if weight.shape[1] not in (1, 3):
        return None
    order = layers[name]["order"][::-1] if name in layers else list(range(len(weight)))
    tiles = [pictures.kernel(weight[i]) for i in order]
    return pictures.uri(pictures.montage([tiles[i : i + 8] for i in range(0, len(tiles), 8)], 36))


def check_out(folder: Path) -> tuple[Path, Path]:
    """Where the two files go; raises SlimrankError, before long work, where they cannot."""
    paths = folder / "explain.json", folder / "explain.html"
    for path in paths:
        if path.is_dir():
            raise SlimrankError(f"cannot write {path}: it is a folder; name another folder with --out")
        ready(path)
    return paths


def save(explanation: Explanation, folder: Path) -> tuple[Path, Path]:
    """Write explain.json and explain.html; each whole or not at all."""
    paths = check_out(folder)
    write_json(paths[0], explanation.found)
    write_text(paths[1], explain_page(explanation.found, explanation.shown, explanation.kernels))
    return paths
