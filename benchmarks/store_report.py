"""What the store is asked for beside what was measured: docs/results/store.json and store.md.

    python -m benchmarks.store_report RESULTS --out docs/results

RESULTS is a folder of what the benchmarks printed with --json, as NAME.txt or NAME.json: index, alone,
million and graph (`store`), store_model, lancedb and chroma (`store_rivals`), faults, tiers, sleep. What is
missing there is missing in the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Line(NamedTuple):
    """One thing that is asked for."""

    what: str
    wanted: str
    read: Callable[[dict[str, Any]], float]
    reached: Callable[[float], bool]
    form: str = "{:.2f}"


def at_most(bound: float) -> Callable[[float], bool]:
    return lambda value: value <= bound


def at_least(bound: float) -> Callable[[float], bool]:
    return lambda value: value >= bound


def searches(name: str, title: str, rivals: tuple[str, ...]) -> list[Line]:
    """Of the tier that suits so many vectors."""

    def tier(report: dict[str, Any]) -> dict[str, Any]:
        return report[name]["ivf_fp16"]

    lines = [
        Line(f"{title}: recall of 16", ">= .95", lambda r: tier(r)["recall"], at_least(0.95), "{:.3f}"),
        Line(
            f"{title}: batch of 64, time to raw FAISS",
            "<= 1.11",
            lambda r: tier(r)["batch_64_ratio_to_raw FAISS"],
            at_most(1 / 0.9),
        ),
        Line(
            f"{title}: one query, time to raw FAISS",
            "<= 2",
            lambda r: tier(r)["batch_1_ratio_to_raw FAISS"],
            at_most(2.0),
        ),
    ]
    return lines + [
        Line(
            f"{title}: batch of 64, time to {rival}",
            "<= 1",
            lambda r, rival=rival: tier(r)[f"batch_64_ratio_to_{rival}"],
            at_most(1.0),
        )
        for rival in rivals
    ]


def rate_to(rival: str, rows: str, ours: str) -> Callable[[dict[str, Any]], float]:
    def ratio(report: dict[str, Any]) -> float:
        mine = report["store_model"]["updates"][f"update_{ours}_steps_per_s"]
        return mine / report[rival][rival][f"rows_per_s_by_{rows}"]

    return ratio


def tier_loss(tier: str) -> Callable[[dict[str, Any]], float]:
    """Largest loss in a column of quality against the model in single precision."""

    def loss(report: dict[str, Any]) -> float:
        rows = {row["tier"]: row for row in report["tiers"]}
        good, bad = ("rank", "auc", "step", "credit"), ("worst_win", "unearned_pay")
        base, row = rows["torch"], rows[tier]
        return max(*(base[c] - row[c] for c in good), *(row[c] - base[c] for c in bad))

    return loss


def of_tier(tier: str, field: str) -> Callable[[dict[str, Any]], float]:
    return lambda report: next(row for row in report["tiers"] if row["tier"] == tier)[field]


LINES = [
    *searches("index", "100k x 384, in turns with all", ("usearch", "hnswlib", "lancedb")),
    *searches("alone", "100k x 384, in turns with raw FAISS alone", ()),
    *searches("million", "1M x 384", ()),
    Line(
        "Update of 1,008 steps on 100k nodes, durable, s on the clock",
        "< .5",
        lambda r: r["store_model"]["updates"]["update_1008_steps_s"],
        at_most(0.5),
    ),
    Line(
        "the same, s of one processor",
        "< .5",
        lambda r: r["store_model"]["updates"]["update_1008_steps_processor_s"],
        at_most(0.5),
    ),
    Line(
        "Writes by 1,000, rate to LanceDB's by one row",
        ">= 5",
        rate_to("lancedb", "1", "1008_steps"),
        at_least(5),
    ),
    Line(
        "Writes by episodes of 16, rate to LanceDB's by one row",
        ">= 5",
        rate_to("lancedb", "1", "one_episode"),
        at_least(5),
    ),
    Line(
        "Writes by 1,000, rate to Chroma's by 1,000",
        ">= 5",
        rate_to("chroma", "1000", "1008_steps"),
        at_least(5),
    ),
    Line(
        "Writes by episodes of 16, rate to Chroma's by 16",
        ">= 5",
        rate_to("chroma", "16", "one_episode"),
        at_least(5),
    ),
    Line(
        "Best ways, 1M nodes, 10M edges: time to numba Gauss-Seidel in reverse",
        "<= 1.5",
        lambda r: r["graph"]["max_product"]["ratio_to_plain_gauss_seidel"],
        at_most(1.5),
    ),
    Line(
        "First hits, the same",
        "<= 1.5",
        lambda r: r["graph"]["first_hit"]["ratio_to_plain_gauss_seidel"],
        at_most(1.5),
    ),
    Line(
        "One raised value, median, microseconds",
        "< 50",
        lambda r: r["graph"]["raise_one_step_us"]["median"],
        at_most(50),
        "{:.1f}",
    ),
    Line(
        "Scoring 64 rollouts of 16 steps, 100k nodes: time to its bare searches",
        "<= 2",
        lambda r: r["store_model"]["scoring"]["ratio_to_bare_search_processor"],
        at_most(2),
    ),
    Line(
        "the same, steps a second and processor; two were to make 10,000",
        ">= 5,000",
        lambda r: r["store_model"]["scoring"]["steps"] / r["store_model"]["scoring"]["processor_s"],
        at_least(5_000),
        "{:,.0f}",
    ),
    Line(
        "Scoring with the encoder in, speed to a plain encode of each step",
        ">= 3",
        of_tier("torch", "speed_up_cpu"),
        at_least(3),
    ),
    Line("the same in int8", ">= 3", of_tier("int8", "speed_up_cpu"), at_least(3)),
    Line(
        "int8: largest difference of a score to the plain encode's",
        "<= .001",
        of_tier("int8", "largest_score_difference"),
        at_most(1e-3),
        "{:.5f}",
    ),
    Line(
        "Largest difference of a score to the plain encode's",
        "<= .001",
        of_tier("torch", "largest_score_difference"),
        at_most(1e-3),
        "{:.1g}",
    ),
    Line("int8: largest loss in a column of quality", "<= .01", tier_loss("int8"), at_most(0.01), "{:.3f}"),
    Line("Kills", ">= 200", lambda r: r["faults"]["kills"], at_least(200), "{:.0f}"),
    Line("Acknowledged writes lost", "0", lambda r: r["faults"]["lost"], at_most(0), "{:.0f}"),
    Line(
        "Folders damaged by a kill or a full disk",
        "0",
        lambda r: r["faults"]["damaged"],
        at_most(0),
        "{:.0f}",
    ),
    Line(
        "Spoiled files that passed for whole, or whose error names none",
        "0",
        lambda r: r["faults"]["spoiled_silent"] + r["faults"]["spoiled_unnamed"],
        at_most(0),
        "{:.0f}",
    ),
    Line(
        "Bytes a memory, to 1.3 raw keys and 64",
        "<= 1",
        lambda r: (
            r["store_model"]["memory"]["bytes"] / r["store_model"]["memory"]["limit_of_1.3_raw_keys_and_64"]
        ),
        at_most(1),
    ),
    Line(
        "Bytes a memory, to 1.3 raw step embeddings and 64",
        "<= 1",
        lambda r: (
            r["store_model"]["memory"]["bytes"]
            / r["store_model"]["memory"]["limit_of_1.3_step_embeddings_and_64"]
        ),
        at_most(1),
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
            value = line.read(report)
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
