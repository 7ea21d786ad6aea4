"""The commands whose results are recorded, and how exactly each is repeated.

Every command runs in a folder of its own that holds golden/files. Widths are given with --align, whose default depends on the
machine (ONNX Runtime's block). Left out: --timed, --latency and inspect --time, each 8 to 16 seconds for keys alone
(test_budgets.py and test_cli.py have them), and demo.
"""

from dataclasses import dataclass
from typing import Literal

# How much of a result is the same on every machine.
#   exact:   nothing was trained; integers exact, floats to 1e-4, accuracies to one image
#   trained: floating point differs between kinds of CPU; accuracies to 0.03, other floats by type only
#   keys:    the clock decided; keys and types only
Rule = Literal["exact", "trained", "keys"]


@dataclass(frozen=True)
class Case:
    """`slack`: how far floats other than accuracies may lie from the recorded ones, where they count images or are learned."""

    command: str
    rule: Rule = "exact"
    slack: float = 0.0


SMALL = "train --model lenet5 --model-arg widths=[4,8,24,16] --data digits --precision fp32 --lr 0.05"
HEAD = "specialize tuned.safetensors --data digits"
FIXTURES = {
    "dense.safetensors": "train --model lenet5 --data digits --epochs 8 --lr 0.05 --precision fp32",
    "pruned.safetensors": "prune dense.safetensors --macs 0.2 --align 1",
    "tuned.safetensors": "finetune pruned.safetensors --data digits --epochs 6 --precision fp32",
    "gather.safetensors": f"{HEAD} --layout gather --fit refit --k2 6",
    "tiled.safetensors": f"{HEAD} --layout tiled --groups 3 --tile 1 --fit refit --k2 4 --rescore 3",
    "probed.safetensors": f"{HEAD} --layout tiled --groups 5 --tile 1 --fit refit --k2 5 --probe 3",
    "int8.safetensors": f"{HEAD} --layout int8 --fit truncate",
    "gates.safetensors": f"{SMALL} --epochs 12 --csg",
    "block-norm.safetensors": f"{SMALL} --epochs 8 --block-norm 2,1,4,0.1",
    "resnet.safetensors": (
        "train --model resnet20-cifar --model-arg widths=[4,6,8] --size 16 --data digits --epochs 6 --lr 0.2 --precision fp32"
    ),
    "resnet-pruned.safetensors": "prune resnet.safetensors --macs 0.7 --align 1 --scope global --ranker bn-scale",
    "l1.json": "rank dense.safetensors --ranker l1",
    "influential.json": "rank dense.safetensors --ranker influential --data digits",
    "tiled.onnx": "export tiled.safetensors --data digits",
}
MODELS = [name for name in FIXTURES if not name.endswith(".json")]

TEXTS = [
    "--version",
    "inspect dense.safetensors",
    "inspect resnet-pruned.safetensors",
    "inspect tiled.safetensors",
    "evaluate dense.safetensors --data digits",
    "evaluate tiled.onnx --data digits",
    "compare-ranks l1.json influential.json",
    "compare-ranks l1.json influential.json --top 3",
]

CASES = [
    Case("inspect dense.safetensors"),
    Case("inspect resnet-pruned.safetensors"),
    Case("inspect tiled.safetensors"),
    Case("evaluate dense.safetensors --data digits"),
    Case("evaluate dense.safetensors --data digits --split validation"),
    Case("evaluate dense.safetensors --data digits --validation test:0.2"),
    Case("evaluate dense.safetensors --data digits --limit 100"),
    Case("evaluate tiled.onnx --data digits"),
    Case("rank dense.safetensors --ranker l1 -o scores.json"),
    Case("rank dense.safetensors --ranker fpgm -o scores.json"),
    Case("rank dense.safetensors --ranker lamp -o scores.json"),
    Case("rank dense.safetensors --ranker random -o scores.json"),
    Case("rank dense.safetensors --ranker random --seed 5 --layer conv1 --layer fc2 -o scores.json"),
    Case("rank resnet.safetensors --ranker l1 -o scores.json"),
    Case("rank resnet.safetensors --ranker bn-scale -o scores.json"),
    Case("rank resnet-pruned.safetensors --ranker fpgm -o scores.json"),
    Case("rank pruned.safetensors --ranker taylor --data digits -o scores.json", slack=1e-6),
    Case("rank pruned.safetensors --ranker influential --data digits -o scores.json", slack=10),
    Case("rank pruned.safetensors --ranker influential --data digits --k1 3 --limit 200 -o scores.json", slack=5),
    Case("rank pruned.safetensors --ranker car --data digits --layer fc3 --memory 100000 -o scores.json", slack=0.08),
    Case("rank pruned.safetensors --ranker car --data digits -o scores.json", slack=0.08),
    Case("rank pruned.safetensors --ranker car --data digits --layer fc2 --greedy --remove 3 -o scores.json", slack=1.01),
    Case("rank pruned.safetensors --ranker shapley --data digits --layer conv1 -o scores.json", slack=0.01),
    Case("rank pruned.safetensors --ranker shapley --data digits --layer conv1 --estimator exact -o scores.json", slack=0.01),
    Case("rank pruned.safetensors --ranker shapley --data digits --layer fc2 --estimator truncated -o scores.json", slack=0.01),
    Case(
        "rank pruned.safetensors --ranker shapley --data digits --layer fc2 --estimator truncated --coalition-size 1 "
        "-o scores.json",
        slack=0.01,
    ),
    Case(
        "rank pruned.safetensors --ranker shapley --data digits --layer fc2 --estimator permutation --samples 4 "
        "--tolerance 1e-9 -o scores.json",
        slack=0.02,
    ),
    Case(
        "rank pruned.safetensors --ranker shapley --data digits --layer fc2 --estimator subsets --samples 4 -o scores.json",
        slack=0.02,
    ),
    Case("rank pruned.safetensors --ranker switch --data digits --layer fc2 --epochs 1 -o scores.json", slack=0.01),
    Case("rank pruned.safetensors --ranker switch --data digits --layer fc2 --epochs 1 --sampled -o scores.json", slack=0.02),
    Case(
        "rank pruned.safetensors --ranker switch --data digits --layer fc2 --epochs 1 --identity --alpha0 0.1 --lr 0.05 "
        "-o scores.json",
        slack=0.02,
    ),
    Case("compare-ranks l1.json influential.json"),
    Case("compare-ranks l1.json influential.json --top 3 -o pair.svg"),
    Case("sensitivity pruned.safetensors --data digits -o scores.json", slack=0.02),
    Case("sensitivity pruned.safetensors --data digits --ranker l1 --layer fc2 --limit 100 -o scores.json", slack=0.03),
    Case("prune dense.safetensors --ratio 0.3 --align 1 -o out.safetensors"),
    Case("prune dense.safetensors --macs 0.5 --align 1 --data digits -o out.safetensors"),
    Case("prune dense.safetensors --macs 0.5 --align 8 --ranker l1 --data digits --validation test:0.2 -o out.safetensors"),
    Case("prune dense.safetensors --params 0.5 --align 1 --min-filters 6 --protect fc1 -o out.safetensors"),
    Case("prune dense.safetensors --macs 0.5 --align 1 --scope global --scores influential.json -o out.safetensors"),
    Case("prune dense.safetensors --ratio 0.4 --align 1 --scope global --ranker l1 -o out.safetensors"),
    Case("prune dense.safetensors --params 0.4 --align 1 --ranker random --seed 3 -o out.safetensors"),
    Case("prune dense.safetensors --macs 0.5 --align 1 --ranker influential --data digits -o out.safetensors"),
    Case("prune dense.safetensors --max-drop 0.05 --align 1 --data digits -o out.safetensors"),
    Case(
        "prune dense.safetensors --max-drop 0.3 --align 1 --data digits --epochs 1 --precision fp32 -o out.safetensors", "keys"
    ),
    Case("prune resnet.safetensors --macs 0.6 --align 1 -o out.safetensors"),
    Case("prune resnet.safetensors --macs 0.6 --align 4 --scope global --ranker lamp --data digits -o out.safetensors"),
    Case("prune resnet.safetensors --ratio 0.3 --align 1 --data digits --recalibrate -o out.safetensors"),
    Case("prune gates.safetensors --macs 0.5 --align 1 -o out.safetensors"),
    Case("prune resnet-pruned.safetensors --params 0.7 --align 1 --ranker l1 -o out.safetensors"),
    Case("train --from tuned.safetensors --data digits --epochs 1 --lr 0.01 --precision fp32 -o out.safetensors", "trained"),
    Case(
        "train --model lenet5 --model-arg widths=[4,6,20,12] --data digits --limit 200 --epochs 2 --label-smoothing 0.1 "
        "--augment none --precision fp32 -o out.safetensors",
        "keys",
    ),
    Case(
        "train --from gates.safetensors --data digits --csg --epochs 3 --lr 0.01 --precision fp32 -o out.safetensors", "trained"
    ),
    Case(
        "train --from block-norm.safetensors --data digits --block-norm inf,1,3,0.01 --activation-norm 0.01 "
        "--spatial-norm 0.01 --epochs 1 --lr 0.01 --precision fp32 -o out.safetensors",
        "trained",
    ),
    Case("finetune pruned.safetensors --data digits --epochs 2 --precision fp32 -o out.safetensors", "trained"),
    Case(
        "finetune pruned.safetensors --data digits --teacher dense.safetensors --teacher-share 0.7 --epochs 2 --patience 1 "
        "--augment shift --lr 0.01 --precision fp32 -o out.safetensors",
        "trained",
    ),
    Case("finetune tiled.safetensors --data digits --epochs 1 --lr 0.005 --precision fp32 -o out.safetensors", "trained"),
    Case("finetune resnet-pruned.safetensors --data digits --epochs 1 --precision fp32 -o out.safetensors", "keys"),
    Case("specialize tuned.safetensors --data digits --layout gather --fit refit --k2 6 -o out.safetensors"),
    Case(
        "specialize tuned.safetensors --data digits --layout gather --select histogram --fit truncate --k1 coverage:0.9 "
        "--k2 6 --sweep 3,6 -o out.safetensors"
    ),
    Case(
        "specialize tuned.safetensors --data digits --layout dense --select contribution --fit refit --k2 auto --max-drop 0.05 "
        "-o out.safetensors"
    ),
    Case("specialize tuned.safetensors --data digits --layout gather --select weights --fit truncate -o out.safetensors"),
    Case(
        "specialize tuned.safetensors --data digits --layout gather --select weights+histogram --fit refit --k2 7 "
        "--layer fc3 -o out.safetensors"
    ),
    Case(
        "specialize gates.safetensors --data digits --layout gather --select gates --fit refit --k2 5 -o out.safetensors",
    ),
    Case(
        "specialize tuned.safetensors --data digits --layout tiled --groups 3 --tile 1 --k2 8 --fit refit --rescore auto "
        "--agreement 0.97 -o out.safetensors"
    ),
    Case(
        "specialize tuned.safetensors --data digits --layout tiled --adjacent --groups 2 --fit refit --rescore 10 "
        "-o out.safetensors"
    ),
    Case(
        "specialize tuned.safetensors --data digits --layout tiled --groups 5 --tile 1 --k2 8 --fit refit --probe auto "
        "--agreement 0.9 -o out.safetensors"
    ),
    Case("specialize tuned.safetensors --data digits --layout int8 --fit truncate -o out.safetensors"),
    Case("specialize tuned.safetensors --data digits --layout gather --k2 6 -o out.safetensors", "trained"),
    Case("specialize resnet.safetensors --data digits --layout gather --fit refit --k2 4 -o out.safetensors"),
    Case("explain tuned.safetensors --data digits --limit 200", slack=0.1),
    Case("explain resnet.safetensors --data digits --limit 100 --k1 3 --k2 4 --layer layer1.0.conv1 -o told", slack=0.1),
    Case("export pruned.safetensors -o out.onnx"),
    Case("export probed.safetensors --data digits -o out.onnx"),
    Case("export resnet-pruned.safetensors --data digits --limit 50 -o out.onnx"),
    Case("bench tiled.onnx tiled.onnx --batch 1,2 --seconds 0.05", "keys"),
    Case("bench-head gather.safetensors --batch 1 --layout gather", "keys"),
    Case("compress tuned.safetensors --align 1 --batch 1 -o out", slack=0.1),
    Case("compress tuned.safetensors --macs 0.6 --align 1 --data digits --epochs 1 --batch 1 -o out", "keys"),
    Case(
        "compress tuned.safetensors --macs 0.7 --align 1 --head linear --data digits --epochs 1 --lr 0.01 --precision fp32 "
        "--steps 2 --recover 1 --distill --rivals --batch 1 -o out",
        "trained",
    ),
    Case(
        "compress gates.safetensors --params 0.7 --align 1 --scope global --ranker l1 --head gather --fit refit --data digits "
        "--epochs 0 --batch 1 -o out",
        slack=0.01,
    ),
]
