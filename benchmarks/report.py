"""From results to Markdown and pictures: docs/results, and the section of the README between its marks.

python -m benchmarks.report docs/results/compare.json [--readme README.md]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {
    "textworld": "TextWorld",
    "scienceworld": "ScienceWorld",
    "minigrid": "MiniGrid",
    "crafter": "Crafter",
}
WHERE = {"memory": "tasks in memory", "unseen": "unseen tasks"}
MEASURES = {
    "rank": "rank",
    "auc": "AUC",
    "step": "step",
    "credit": "credit",
    "recall": "recall@k",
    "epic": "EPIC",
    "ece": "ECE",
    "brier": "Brier",
    "worst_win": "worst hack win",
    "unearned_pay": "unearned pay",
}
LOWER = ("epic", "ece", "brier", "worst_win", "unearned_pay")
"""Measures of which less is better."""
SHORT = ("rank", "credit", "worst_win")
Row = dict[str, Any]


def number(value: float, digits: int = 2) -> str:
    """A number without its leading zero.

    >>> number(0.5), number(-0.041), number(1.0), number(float("nan"))
    ('.50', '-.04', '1.00', '-')
    """
    if np.isnan(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and not text.endswith("1.00") else text


def mean(rows: Sequence[Row], measure: str) -> list[float]:
    """[value, low, high] over seeds."""
    found = [row["measures"][measure] for row in rows if measure in row["measures"]]
    return np.mean(found, axis=0).tolist() if found else [float("nan")] * 3


def pick(rows: Sequence[Row], **where: Any) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def names(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def best(values: Sequence[float], lower: bool) -> list[bool]:
    """Which values are the best of their column, as printed."""
    shown = np.round(values, 2)
    top = np.nanmin(shown) if lower else np.nanmax(shown)
    return [bool(value == top) for value in shown]


def full_table(rows: Sequence[Row], bold: bool = True) -> str:
    """All measures of each scorer with their intervals; the best of each column in bold."""
    scorers = names(rows, "scorer")
    measures = [m for m in MEASURES if any(m in row["measures"] for row in rows)]
    columns = []
    for m in measures:
        values = [mean(pick(rows, scorer=s), m) for s in scorers]
        marks = best([v[0] for v in values], m in LOWER)
        cells = []
        for (value, low, high), mark in zip(values, marks, strict=True):
            shown = f"**{number(value)}**" if mark and bold else number(value)
            cells.append(f"{shown} <sub>{number(low)} to {number(high)}</sub>")
        columns.append(cells)
    body = [[s, *(column[i] for column in columns)] for i, s in enumerate(scorers)]
    return markdown(["scorer", *(MEASURES[m] for m in measures)], body)


def short_table(rows: Sequence[Row]) -> str:
    """Rank, credit and worst hack win in every environment."""
    environments, scorers = names(rows, "environment"), names(rows, "scorer")
    columns = []
    for environment in environments:
        cells = [[] for _ in scorers]
        for m in SHORT:
            values = [mean(pick(rows, scorer=s, environment=environment), m)[0] for s in scorers]
            for cell, value, mark in zip(cells, values, best(values, m in LOWER), strict=True):
                cell.append(f"**{number(value)}**" if mark else number(value))
        columns.append([" / ".join(cell) for cell in cells])
    body = [[s, *(column[i] for column in columns)] for i, s in enumerate(scorers)]
    return markdown(["rank / credit / worst hack win", *(TITLES[e] for e in environments)], body)


def attack_table(rows: Sequence[Row], column: str) -> str:
    """One line a scorer, one column an attack."""
    scorers = names(rows, "scorer")
    kinds = list(dict.fromkeys(a for row in rows for a in row["attacks"]))
    body = []
    for s in scorers:
        mine = pick(rows, scorer=s)
        values = [np.mean([row["attacks"].get(a, {}).get(column, np.nan) for row in mine]) for a in kinds]
        body.append([s, *(number(float(v)) for v in values)])
    return markdown(["scorer", *(a.replace("_", " ") for a in kinds)], body)


def tables(document: dict[str, Any]) -> str:
    """Every table of a run."""
    rows = document["rows"]
    out = [
        "# Ours and the rivals",
        f"Made by `make bench`; held out: `{document['held_out']}`, seeds {document['seeds']}. "
        "[What is measured and how](../benchmarks.md). Small figures are 95 % bootstrap intervals over "
        "tasks; the best of a column is in bold, whoever it is.",
    ]
    for protocol in names(rows, "protocol"):
        for environment in names(rows, "environment"):
            here = pick(rows, protocol=protocol, environment=environment)
            title = f"{TITLES[environment]}, {WHERE[protocol]}"
            main = pick(here, part="table")
            if main:
                out += [f"## {title}", full_table(main)]
                more = main + pick(here, part="ablations", scorer="ours, observations only")
                out += ["Share of hacked rollouts paid more than the mean honest success of their task:"]
                out += [attack_table(more, "win"), "Unearned pay:", attack_table(more, "pay")]
            parts = pick(here, part="ablations")
            if parts:
                whole = pick(main, scorer="ours")
                out += [f"### {title}: without its parts", full_table(whole + parts, bold=False)]
            noisy = pick(here, part="noise")
            if noisy:
                out += [f"### {title}: 25 % of outcomes flipped", full_table(noisy)]
            curves = pick(here, part="curves")
            if curves:
                out += [f"### {title}: learning curves, rank / credit", curve_table(curves)]
    return "\n\n".join(out) + "\n"


def curve_table(rows: Sequence[Row]) -> str:
    sizes = sorted(names(rows, "size"))
    body = []
    for s in names(rows, "scorer"):
        mine = [pick(rows, scorer=s, size=n) for n in sizes]
        body.append([s, *(" / ".join(number(mean(r, m)[0]) for m in ("rank", "credit")) for r in mine)])
    return markdown(["episodes", *map(str, sizes)], body)


def draw(document: dict[str, Any], folder: Path) -> list[str]:
    """The pictures of a run; names of those that there was something to draw for."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "valuegraph", "font.size": 8})
    rows, made = document["rows"], []

    def finish(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)
        made.append(name)

    main = pick(rows, part="table", protocol="memory")
    if main:
        environments, scorers = names(main, "environment"), names(main, "scorer")
        values = np.array(
            [
                [mean(pick(main, scorer=s, environment=e), "worst_win")[0] for e in environments]
                for s in scorers
            ]
        )
        figure, axes = plt.subplots(figsize=(7, 0.28 * len(scorers) + 1.2))
        axes.imshow(values, cmap="Reds", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(environments)), [TITLES[e] for e in environments])
        axes.set_yticks(range(len(scorers)), scorers)
        for (i, j), value in np.ndenumerate(values):
            axes.text(
                j, i, number(value), ha="center", va="center", color="white" if value > 0.6 else "black"
            )
        axes.set_title("Worst hack win, tasks in memory (lower is better)")
        finish(figure, "compare_hacks.svg")
    curves = pick(rows, part="curves")
    if curves:
        environments = names(curves, "environment")
        figure, grid = plt.subplots(
            len(environments), 2, figsize=(7, 2.6 * len(environments)), squeeze=False, sharey=True
        )
        for line, environment in zip(grid, environments, strict=True):
            for axes, m in zip(line, ("rank", "credit"), strict=True):
                for s in names(curves, "scorer"):
                    mine = pick(curves, scorer=s, environment=environment)
                    sizes = sorted(set(names(mine, "size")))
                    band = np.array([mean(pick(mine, size=n), m) for n in sizes]).T
                    axes.plot(sizes, band[0], marker=".", label=s, linewidth=2 if s == "ours" else 1)
                    axes.fill_between(sizes, band[1], band[2], alpha=0.08)
                axes.set(xscale="log", xlabel="episodes", title=f"{TITLES[environment]}: {m}")
        grid[0][0].legend(fontsize=6)
        finish(figure, "compare_curves.svg")
    return made


def section(page: str, new: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with what stands between the marks replaced. Raises ValueError where there are none."""
    if begin not in page or end not in page:
        raise ValueError(f"the page has no {begin} ... {end}")
    before, rest = page.split(begin, 1)
    return f"{before}{begin}\n{new.strip()}\n{end}{rest.split(end, 1)[1]}"


def standing(rows: Sequence[Row], whose: str = "ours") -> str:
    """In how many environments one scorer is the best by each of the short measures."""
    environments, scorers = names(rows, "environment"), names(rows, "scorer")
    if whose not in scorers:
        return ""
    counts = []
    for m in SHORT:
        wins = 0
        for environment in environments:
            values = [mean(pick(rows, scorer=s, environment=environment), m)[0] for s in scorers]
            wins += best(values, m in LOWER)[scorers.index(whose)]
        counts.append(f"{MEASURES[m]} in {wins}")
    return (
        f"{whose.capitalize()} is best or ties by {', by '.join(counts)} of {len(environments)} environments."
    )


def summary(document: dict[str, Any], pictures: Sequence[str]) -> str:
    """What the README says of a run."""
    rows = document["rows"]
    memory = pick(rows, part="table", protocol="memory")
    unseen = pick(rows, part="table", protocol="unseen")
    out = [
        "### Beside the rivals",
        "By `make bench`: every scorer behind one protocol, on the same episodes and embeddings, on tasks\n"
        "held out for this table ([method](docs/benchmarks.md)). [All tables](docs/results/compare.md) have\n"
        "intervals, every attack, calibration, learning curves, each part of ours removed, and a quarter of\n"
        "the outcomes flipped. Here: *rank / credit / worst hack win*, the best in bold. The worst is of\n"
        "twelve attacks, *recite* not among them (see [Limits](#limits)).",
        f"Tasks in memory. {standing(memory)}",
        short_table(memory),
    ]
    if unseen:
        out += [f"Unseen tasks. {standing(unseen)}", short_table(unseen)]
    if "compare_curves.svg" in pictures:
        alt = "Rank and credit of ours and of four rivals against the number of episodes fitted on."
        out.append(f"![{alt}](docs/results/compare_curves.svg)")
    return "\n\n".join(out)


def _known(part: dict[str, Any]) -> dict[str, Any]:
    """null is not a number."""
    nan = float("nan")
    return {
        key: nan if x is None else [nan if y is None else y for y in x] if isinstance(x, list) else x
        for key, x in part.items()
    }


def write(results: Path, folder: Path, readme: Path | None = None) -> None:
    """`compare.md` and pictures into a folder, and the section of the README."""
    document = json.loads(results.read_text(encoding="utf-8"), object_hook=_known)
    pictures = draw(document, folder)
    text = tables(document)
    shown = "\n\n".join(f"![]({name})" for name in pictures)
    (folder / "compare.md").write_text(f"{text}\n{shown}\n" if shown else text, encoding="utf-8")
    if readme is not None:
        page = section(readme.read_text(encoding="utf-8"), summary(document, pictures))
        readme.write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--readme", type=Path)
    args = parser.parse_args()
    write(args.results, args.results.parent, args.readme)


if __name__ == "__main__":
    main()
