"""TextWorld: eighty-eight games of four families, compiled from fixed seeds, and the players of the demo.

Côté et al. 2018, TextWorld: A Learning Environment for Text-based Games, https://arxiv.org/abs/1806.11532
"""

from __future__ import annotations

from collections.abc import Iterator

from examples.make_demo_data import Game, Played, cooking, play_all, roster, simple, tables

GAMES = {
    "train": (
        *(
            Game("treasure_hunter", 1000 + n, {"level": n})
            for n in (3, 4, 6, 8, 9, 11, 13, 15, 17, 19, 22, 24, 26)
        ),
        *(Game("coin_collector", 2000 + n, {"level": n}) for n in (4, 5, 7, 9, 104, 106)),
        *(cooking(3000 + n, 1) for n in range(2)),
        *(cooking(3010 + n, 1, take=1, open=True) for n in range(2)),
        *(cooking(3020 + n, 2) for n in range(2)),
        *(cooking(3030 + n, 2, take=1, go=6) for n in range(2)),
        *(cooking(3040 + n, 3, take=1, open=True) for n in range(2)),
        *(simple(4000 + n) for n in range(3)),
    ),
    "dev": (
        *(Game("treasure_hunter", 1100 + n, {"level": n}) for n in (5, 12, 23)),
        *(Game("coin_collector", 2100 + n, {"level": n}) for n in (6, 107)),
        cooking(3100, 1, take=1, open=True),
        cooking(3101, 2, take=1),
        simple(4100),
    ),
    "spent": (
        *(Game("treasure_hunter", 1200 + n, {"level": n}) for n in (7, 14, 25)),
        *(Game("coin_collector", 2200 + n, {"level": n}) for n in (8, 105)),
        cooking(3200, 1, take=1, open=True),
        cooking(3201, 2, take=1),
        simple(4200),
        *(Game("treasure_hunter", 1300 + n, {"level": n}) for n in (5, 7, 12, 14, 23, 25)),
        *(Game("coin_collector", 2300 + n, {"level": n}) for n in (6, 8, 105, 107)),
        *(cooking(3300 + n, 1, take=1, open=True) for n in range(2)),
        *(cooking(3310 + n, 2, take=1) for n in range(2)),
        *(simple(4300 + n) for n in range(2)),
    ),
    "test": (
        *(Game("treasure_hunter", 1400 + n, {"level": n}) for n in (5, 7, 9, 12, 14, 17, 22, 24, 26)),
        *(Game("coin_collector", 2400 + n, {"level": n}) for n in (5, 7, 9, 104, 106, 108)),
        *(cooking(3400 + n, 1, take=1, open=True) for n in range(3)),
        *(cooking(3410 + n, 2, take=1) for n in range(3)),
        *(simple(4400 + n) for n in range(3)),
    ),
}
PLAYERS = roster(expert=2, noisy=20, truncated=3, diverted=3, random=6)


def episodes(split: str) -> Iterator[Played]:
    """Every game of one of `benchmarks.environments.SPLITS`, played by `PLAYERS`."""
    for game, world in tables(GAMES[split]):
        yield from play_all(world, PLAYERS, prefix="tw", task=game.task, env="textworld")
