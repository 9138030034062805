"""Markdown and a picture of what the policies learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Result = dict[str, Any]


class Ends(NamedTuple):
    """What several seeds came to with one reward."""

    gold: list[float]
    """Of each."""
    mean: float
    of_peak: float
    """The least share of its own peak that one of them kept."""
    hacked: float
    """At most."""


def table(result: Result) -> str:
    """Every reward at its end, the cures, filtering."""
    lines = [
        f"REINFORCE in {len(result['games'])} TextWorld games, {result['updates']} updates of "
        f"{len(result['games']) * result['rollouts_per_game']} rollouts, seed {result['seeds'][0]}; "
        "means over five updates.",
        "",
        "| reward | gold: start | peak | end | hacked | claims | KL "
        "| peak at | halved at | first alarm | alarms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, c in result["courses"].items():
        end = c["end"]
        lines.append(
            f"| {name} | {c['start']:.2f} | {c['peak']:.2f} | {end['gold']:.2f} | {end['hacked']:.2f} | "
            f"{end['claims']:.2f} | {end['kl']:.1f} | {c['peak_update']} | "
            f"{_at(c['halved_update'])} | {_at(c['first_alarm'])} | {c['alarms']:.0%} |"
        )
    lines += ["", *_repeated(result)]
    lines += [
        "",
        "| cure of the untrained evaluator | gold | hacked | claims | KL |",
        "|---|---|---|---|---|",
    ]
    for name, p in result["cures"].items():
        lines.append(f"| {name} | {p['gold']:.2f} | {p['hacked']:.2f} | {p['claims']:.2f} | {p['kl']:.1f} |")
    lines += ["", "| filter against train | proxy | gold |", "|---|---|---|"]
    for name, found in result["filtering"].items():
        rows = {f"best of {n}": pair for n, pair in found["best_of_n"].items()}
        rows["clone of the best tenth"] = [found["cloned"]["proxy"], found["cloned"]["gold"]]
        equal = found["reinforce_at_equal_proxy"]
        rows[f"REINFORCE, update {equal['update']}, the nearest proxy"] = [equal["proxy"], equal["gold"]]
        rows["REINFORCE, at the end"] = [result["courses"][name]["end"][k] for k in ("proxy", "gold")]
        lines += [f"| {name}, {what} | {proxy:.2f} | {gold:.2f} |" for what, (proxy, gold) in rows.items()]
    return "\n".join(lines) + "\n"


def _repeated(result: Result) -> list[str]:
    """What other seeds say: other episodes to fit on, another start policy, other draws."""
    seeds = " | ".join(map(str, result["seeds"]))
    lines = [
        f"| gold at the end, by seed | {seeds} | mean | of its peak | hacked |",
        "|---" * (len(result["seeds"]) + 4) + "|",
    ]
    for name, courses in result["repeated"].items():
        ends = at_the_end(courses)
        cells = [f"{x:.2f}" for x in (*ends.gold, ends.mean, ends.of_peak, ends.hacked)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def at_the_end(courses: Sequence[Result]) -> Ends:
    """How the courses of several seeds ended."""
    gold = [c["end"]["gold"] for c in courses]
    shares = [g / max(c["peak"], 1e-12) for g, c in zip(gold, courses, strict=True)]
    return Ends(gold, sum(gold) / len(gold), min(shares), max(c["end"]["hacked"] for c in courses))


def _at(update: int | None) -> str:
    return "-" if update is None else str(update)


def picture(result: Result, path: Path) -> None:
    """Gold and hacks against the KL from the start policy, claims against updates; alarms are crosses."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = (
        ("gold", "kl", "games won"),
        ("hacked", "kl", "failed, yet paid like a success"),
        ("claims", "update", "steps that are claims"),
    )
    with rc_context({"svg.hashsalt": "valuegraph", "font.size": 8}):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        for axis, (what, along, title) in zip(figure.subplots(1, 3), panels, strict=True):
            for i, (name, points) in enumerate(result["curves"].items()):
                x, y = [p[along] for p in points], [p[what] for p in points]
                axis.plot(x, y, color=f"C{i}", lw=0.8, marker=".", markersize=3, label=name)
                alarm = next((k for k, p in enumerate(points) if p["alarm"]), None)
                if alarm is not None:
                    axis.plot(x[alarm], y[alarm], "x", color=f"C{i}", markersize=8)
            label = "update" if along == "update" else "KL from the start policy, nats"
            axis.set(title=title, xlabel=label, ylim=(-0.02, 1.02))
        figure.axes[-1].legend(fontsize=6)
        figure.savefig(path, metadata={"Date": None})
