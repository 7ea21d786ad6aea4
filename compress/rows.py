"""What each stage of `compress` leaves in state.json and in the report: one frozen row a stage, `says` its line for people."""

from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from .stages.rivals import Rival


@dataclass(frozen=True, kw_only=True)
class Row:
    STAGE: ClassVar[str]
    OMITTED: ClassVar[tuple[str, ...]] = ()  # where they are None
    says: str

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return {key: value for key, value in plain.items() if value is not None or key not in self.OMITTED}


@dataclass(frozen=True, kw_only=True)
class BaselineRow(Row):
    STAGE = "baseline"
    top1: float | None
    agreement: float | None = None
    macs: int
    params: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class RankRow(Row):
    STAGE = "rank"
    ranker: str
    scores: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class PruneRow(Row):
    """`top1` before fine-tuning, or after the `training` of the trial that was taken; `agreement` with the dense network;
    `trials`: [share of MACs, top-1]."""

    STAGE = "prune"
    OMITTED = ("validation_top1_before", "training")
    budget: dict[str, float]
    scope: str
    keep: dict[str, list[int]]
    widths: dict[str, list[int]]
    steps: int
    trials: list[list[float]]
    macs_before: int
    macs_after: int
    top1: float | None
    agreement: float | None = None
    note: str
    repair: dict[str, Any] | None = None
    validation_top1_before: float | None = None
    training: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneRow(Row):
    STAGE = "finetune"
    top1: float | None
    training: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class RivalsRow(Row):
    STAGE = "rivals"
    rows: list[Rival]


@dataclass(frozen=True, kw_only=True)
class SpecializeRow(Row):
    """`result`: what came of the head on validation images; `indices` in it are the input checkpoint's feature numbers."""

    STAGE = "specialize"
    OMITTED = ("result",)
    head: str
    result: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ExportRow(Row):
    """What model.onnx is; `int8`: where it was asked for, what it came to, and of the float file top1, agreement and bytes."""

    STAGE = "export"
    OMITTED = ("int8",)
    top1: float | None
    agreement: float | None = None
    macs: int
    params: int
    bytes: int
    parity: dict[str, Any]
    int8: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class BenchRow(Row):
    STAGE = "bench"
    results: list[dict[str, Any]]
    speedups: list[dict[str, Any]]
    machine: dict[str, Any]
    table: str
    remarks: str = ""


ROWS: dict[str, type[Row]] = {
    kind.STAGE: kind for kind in (BaselineRow, RankRow, PruneRow, FinetuneRow, RivalsRow, SpecializeRow, ExportRow, BenchRow)
}
