"""What the store is asked for beside what was measured: docs/results/store.json and store.md.

    python -m benchmarks.store_report RESULTS --out docs/results

RESULTS is a folder of what the benchmarks printed with --json, as NAME.txt or NAME.json: index, alone,
million and graph (`store`), store_model, lancedb and chroma (`store_rivals`), faults, tiers, sleep. What is
missing there is missing in the table.
"""

from __future__ import annotations

import argparse
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Report = Any
Read = Callable[[Report], float]

SIGNS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


class Line(NamedTuple):
    """One thing that is asked for."""

    what: str
    wanted: str
    """A sign and a bound; a bound by itself may not be passed."""
    read: str | Read
    """Names of the fields that lead to the value, "/" between them; or how to get it."""
    form: str = "{:.2f}"

    def value(self, report: Report) -> float:
        return at(report, self.read) if isinstance(self.read, str) else self.read(report)

    def reached(self, value: float) -> bool:
        *sign, bound = self.wanted.split()
        return bool(SIGNS[sign[0] if sign else "<="](value, float(bound.replace(",", ""))))


def at(report: Report, path: str) -> float:
    for name in path.split("/"):
        report = (
            next(row for row in report if row["tier"] == name) if isinstance(report, list) else report[name]
        )
    return float(report)


def ratio(above: str, below: str) -> Read:
    return lambda report: at(report, above) / at(report, below)


def total(*parts: str) -> Read:
    return lambda report: sum(at(report, part) for part in parts)


def tier_loss(tier: str) -> Read:
    """Largest loss in a column of quality against the model in single precision."""

    def loss(report: Report) -> float:
        base, row = (next(r for r in report["tiers"] if r["tier"] == name) for name in ("torch", tier))
        good, bad = ("rank", "auc", "step", "credit"), ("worst_win", "unearned_pay")
        return max(*(base[c] - row[c] for c in good), *(row[c] - base[c] for c in bad))

    return loss


def searches(name: str, title: str, rivals: tuple[str, ...] = ()) -> list[Line]:
    """Of the tier that suits so many vectors."""
    field = f"{name}/ivf_fp16/batch"
    return [
        Line(f"{title}: recall of 16", ">= .95", f"{name}/ivf_fp16/recall", "{:.3f}"),
        Line(f"{title}: batch of 64, time to raw FAISS", "<= 1.11", f"{field}_64_ratio_to_raw FAISS"),
        Line(f"{title}: one query, time to raw FAISS", "<= 2", f"{field}_1_ratio_to_raw FAISS"),
        *(Line(f"{title}: batch of 64, time to {r}", "<= 1", f"{field}_64_ratio_to_{r}") for r in rivals),
    ]


MODEL, UPDATES, SCORING = "store_model", "store_model/updates/update", "store_model/scoring"
BY_1000, BY_16 = f"{UPDATES}_1008_steps_steps_per_s", f"{UPDATES}_one_episode_steps_per_s"
LANCE, CHROMA = "lancedb/lancedb/rows_per_s_by", "chroma/chroma/rows_per_s_by"
BYTES, LIMIT = f"{MODEL}/memory/bytes", f"{MODEL}/memory/limit_of_1.3"

LINES = [
    *searches("index", "100k x 384, in turns with all", ("usearch", "hnswlib", "lancedb")),
    *searches("alone", "100k x 384, in turns with raw FAISS alone"),
    *searches("million", "1M x 384"),
    Line(
        "Update of 1,008 steps on 100k nodes, durable, s on the clock",
        "< .5",
        f"{UPDATES}_1008_steps_s",
    ),
    Line("the same, s of one processor", "< .5", f"{UPDATES}_1008_steps_processor_s"),
    Line("Writes by 1,000, rate to LanceDB's by one row", ">= 5", ratio(BY_1000, f"{LANCE}_1")),
    Line("Writes by episodes of 16, rate to LanceDB's by one row", ">= 5", ratio(BY_16, f"{LANCE}_1")),
    Line("Writes by 1,000, rate to Chroma's by 1,000", ">= 5", ratio(BY_1000, f"{CHROMA}_1000")),
    Line("Writes by episodes of 16, rate to Chroma's by 16", ">= 5", ratio(BY_16, f"{CHROMA}_16")),
    Line(
        "Best ways, 1M nodes, 10M edges: time to numba Gauss-Seidel in reverse",
        "<= 1.5",
        "graph/max_product/ratio_to_plain_gauss_seidel",
    ),
    Line("First hits, the same", "<= 1.5", "graph/first_hit/ratio_to_plain_gauss_seidel"),
    Line("One raised value, median, microseconds", "< 50", "graph/raise_one_step_us/median", "{:.1f}"),
    Line(
        "Scoring 64 rollouts of 16 steps, 100k nodes: time to its bare searches",
        "<= 2",
        f"{SCORING}/ratio_to_bare_search_processor",
    ),
    Line(
        "the same, steps a second of one processor",
        ">= 5,000",
        ratio(f"{SCORING}/steps", f"{SCORING}/processor_s"),
        "{:,.0f}",
    ),
    Line("the same by two threads, on the clock", ">= 10,000", f"{MODEL}/two_threads/steps_per_s", "{:,.0f}"),
    Line(
        "Scoring with the encoder in, cache empty: speed to a plain encode of each step",
        ">= 3",
        "tiers/torch/speed_up_cpu",
    ),
    Line("the same, float32 by onnxruntime", ">= 3", "tiers/onnx/speed_up_cpu"),
    Line("the same in int8", ">= 3", "tiers/int8/speed_up_cpu"),
    Line(
        "the same from the cache that the fit left, float32 by torch",
        ">= 3",
        "tiers/torch/speed_up_after_fit_cpu",
    ),
    *(
        Line(
            f"{tier}: largest difference of a score to the plain encode's",
            "<= .001",
            f"tiers/{tier}/largest_score_difference",
            "{:.1g}",
        )
        for tier in ("torch", "onnx", "int8")
    ),
    Line("int8: largest loss in a column of quality", "<= .01", tier_loss("int8"), "{:.3f}"),
    Line("Kills", ">= 200", "faults/kills", "{:.0f}"),
    Line("Acknowledged writes lost", "0", "faults/lost", "{:.0f}"),
    Line("Folders damaged by a kill or a full disk", "0", "faults/damaged", "{:.0f}"),
    Line(
        "Spoiled files that passed for whole, or whose error names none",
        "0",
        total("faults/spoiled_silent", "faults/spoiled_unnamed"),
        "{:.0f}",
    ),
    Line("Bytes a memory, to 1.3 raw keys and 64", "<= 1", ratio(BYTES, f"{LIMIT}_raw_keys_and_64")),
    Line(
        "Bytes a memory, to 1.3 raw step embeddings and 64",
        "<= 1",
        ratio(BYTES, f"{LIMIT}_step_embeddings_and_64"),
    ),
]

HEAD = """# The store

Made by `python -m benchmarks.store_report`; [what is measured, and how](../benchmarks.md#the-store). Times
are ratios of ours to theirs, taken in turns in one run (below one: ours is faster), unless a unit is named.

| what | wanted | measured | reached |
|---|---|---|---|
"""


def collect(folder: Path) -> dict[str, Any]:
    """By name; what `benchmarks.store` prints is taken apart."""
    report: dict[str, Any] = {}
    for file in sorted([*folder.glob("*.txt"), *folder.glob("*.json")]):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            continue
        parts = (
            found
            if isinstance(found, dict) and {*found} & {"index", "alone", "million", "graph"}
            else {file.stem: found}
        )
        report |= parts
    return report


def table(report: dict[str, Any]) -> str:
    rows = []
    for line in LINES:
        try:
            value = line.value(report)
        except (KeyError, StopIteration):
            continue
        reached = "yes" if line.reached(value) else "**no**"
        rows.append(f"| {line.what} | {line.wanted} | {line.form.format(value)} | {reached} |")
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = collect(arguments.results)
    (arguments.out / "store.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "store.md").write_text(table(report), encoding="utf-8")


if __name__ == "__main__":
    main()
