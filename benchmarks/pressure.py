"""The README's section on what is left of each scorer under pressure: best-of-n and over-optimisation.

python -m benchmarks.pressure [docs/results] [--readme README.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.overoptimise.report import at_the_end
from benchmarks.report import TITLES, markdown, number, section

BEGIN, END = "<!-- pressure:begin -->", "<!-- pressure:end -->"
DOCS = Path(__file__).parents[1] / "docs" / "results"
SHOWN = ("ours", "max backup on the graph (ERLAM)", "yes/no evaluator", "RUDDER", "goal cosine, last")
"""Of the scorers in the table of best-of-n; the file has them all."""
Result = dict[str, Any]


def best_of_n(document: Result) -> str:
    """Gold at the largest n, and how much of its peak that is, by scorer, environment and label noise."""
    rows = document["rows"]
    panels = list(dict.fromkeys((row["environment"], row["noise"]) for row in rows))
    found = {(row["scorer"], row["environment"], row["noise"]): row for row in rows}
    heads = [f"{TITLES[e]}, {noise:.0%} flipped" for e, noise in panels]
    body = []
    for scorer in dict.fromkeys(row["scorer"] for row in rows):
        if scorer in SHOWN:
            mine = [found[scorer, *panel] for panel in panels]
            body.append([scorer, *(f"{number(r['gold'][-1])} ({number(r['ratio'])})" for r in mine)])
    n = rows[0]["sizes"][-1]
    text = (
        f"*Best of {n}* from pools of a poor policy's rollouts, a fifth of them hacked, by scorers fitted\n"
        "on outcomes as they are or with a quarter turned round: true success of what is chosen and, in\n"
        "brackets, as a share of its peak over n ([all scorers](docs/results/best_of_n.md))."
    )
    return f"{text}\n\n{markdown(['chosen by', *heads], body)}"


def overoptimise(document: Result) -> str:
    """Every reward at its end."""
    size = f"{len(document['games'])} real TextWorld games, {document['updates']} updates"
    text = (
        f"*REINFORCE* in {size} against one reward each,\n"
        'where a policy may also say "yes" or the goal itself: games won (gold), rollouts that fail and are\n'
        "paid like a success (hacked), steps that are claims, and the monitor, which sees no reward\n"
        "([cures and filtering](docs/results/overoptimise.md))."
    )
    body = [
        [
            name,
            " / ".join(number(x) for x in (c["start"], c["peak"], c["end"]["gold"])),
            number(c["end"]["hacked"]),
            number(c["end"]["claims"]),
            "-" if c["first_alarm"] is None else f"{c['first_alarm']} ({c['alarms']:.0%})",
        ]
        for name, c in document["courses"].items()
    ]
    heads = ["trained on", "gold: start / peak / end", "hacked", "claims", "first alarm (of updates)"]
    ends = [f"{name} {number(at_the_end(courses).mean)}" for name, courses in document["repeated"].items()]
    many = f"Gold at the end, mean of {len(document['seeds'])} seeds: {'; '.join(ends)}."
    picture = "![Gold, hacks and claims of policies against how far they went from their start.]"
    return f"{text}\n\n{markdown(heads, body)}\n\n{many}\n\n{picture}(docs/results/overoptimise.svg)"


def summary(folder: Path) -> str:
    """What the README says of the results that are in a folder."""
    out = ["### Under pressure"]
    for part in (best_of_n, overoptimise):
        path = folder / f"{part.__name__}.json"
        if path.exists():
            out.append(part(json.loads(path.read_text(encoding="utf-8"))))
    return "\n\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=DOCS, help="folder of both JSON files")
    parser.add_argument("--readme", type=Path)
    args = parser.parse_args()
    text = summary(args.results)
    print(text)
    if args.readme is not None:
        page = section(args.readme.read_text(encoding="utf-8"), text, BEGIN, END)
        args.readme.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
