"""Draw docs/how_it_works.svg: `python docs/draw_how_it_works.py`."""

from pathlib import Path
from xml.sax.saxutils import escape

INK, SOFT, LINE, LEARN, PAY = "#1f2933", "#52606d", "#9aa5b1", "#e3f2fd", "#e8f5e9"


def text(x: float, y: float, words: str, size: int = 14, color: str = INK, extra: str = "") -> str:
    """Words centred on x."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="middle" {extra}>'
        f"{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, title: str, *lines: str, fill: str = "white") -> str:
    """A box with a bold title and a few soft lines."""
    middle, top = x + width / 2, y + height / 2 - 9 * len(lines) + 5
    return "\n".join(
        [
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{LINE}"/>',
            text(middle, top, title, extra='font-weight="600"'),
            *(text(middle, top + 18 * (i + 1), line, 12, SOFT) for i, line in enumerate(lines)),
        ]
    )


def arrow(x1: float, y1: float, x2: float, y2: float, color: str = SOFT, extra: str = "") -> str:
    """An arrow from one point to another."""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="1.6" '
        f'marker-end="url(#head)" {extra}/>'
    )


def node(x: float, y: float, value: float, words: str) -> str:
    """A memory, greener the more it is worth."""
    shade = f"hsl(140, 45%, {95 - 40 * value:.0f}%)"
    return "\n".join(
        [
            f'<circle cx="{x}" cy="{y}" r="19" fill="{shade}" stroke="{SOFT}"/>',
            text(x, y + 4, f"{value:.2f}", 12),
            text(x, y + 36, words, 11, SOFT),
        ]
    )


def picture() -> str:
    """The whole drawing."""
    dashed = 'stroke-dasharray="5 4"'
    parts = [
        text(80, 30, "LEARN", 12, SOFT, 'font-weight="700" letter-spacing="2"'),
        box(20, 44, 150, 84, "episodes", "goal, steps", "outcome at the end", fill=LEARN),
        arrow(170, 86, 206, 86),
        box(210, 44, 150, 84, "encoder", "each distinct step", "once: φ", fill=LEARN),
        arrow(360, 86, 396, 86),
        box(400, 44, 190, 84, "learner (Lightning)", "φ, goal, context →", "role z and value", fill=LEARN),
        arrow(495, 128, 495, 156),
        f'<rect x="20" y="160" width="860" height="164" rx="10" fill="#fffdf5" stroke="{LINE}"/>',
        text(150, 184, "value graph in a FAISS index", extra='font-weight="600"'),
        *(arrow(x, 242, x + 77, 242) for x in (139, 259, 499, 619)),
        arrow(379, 242, 456, 242),
        node(120, 242, 0.31, "go north"),
        node(240, 242, 0.48, "take the key"),
        node(360, 242, 0.62, "unlock the door"),
        node(480, 242, 0.79, "open the chest"),
        node(600, 242, 0.94, "take the lamp"),
        node(720, 242, 1.0, "won"),
        node(480, 190, 0.05, ""),
        arrow(377, 232, 457, 199, LINE),
        text(546, 194, "look at a wall", 11, SOFT),
        arrow(720, 300, 120, 300, "#2e7d32", dashed),
        text(
            420,
            317,
            "credit runs backwards from outcomes, across episodes that share a memory",
            12,
            "#2e7d32",
        ),
        text(80, 348, "SCORE", 12, SOFT, 'font-weight="700" letter-spacing="2"'),
        box(20, 362, 150, 84, "rollout", "goal, steps", "no outcome", fill=PAY),
        arrow(170, 392, 226, 382),
        arrow(170, 416, 226, 432),
        box(230, 346, 270, 56, "terminal u", "did it end where good episodes end?", fill=PAY),
        box(230, 412, 270, 56, "instrumental g", "did it get there their way, in order?", fill=PAY),
        arrow(365, 324, 365, 342),
        arrow(500, 374, 556, 392),
        arrow(500, 440, 556, 420),
        box(560, 362, 140, 84, "total U", "soft AND of both,", "in [0, 1]", fill=PAY),
        arrow(700, 404, 736, 404),
        box(740, 362, 140, 84, "step rewards", "U(t) − U(t−1),", "they sum to U", fill=PAY),
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 486" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
            "<title>How valuegraph learns and scores</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{SOFT}"/></marker></defs>',
            '<rect width="900" height="486" fill="white"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    Path(__file__).with_name("how_it_works.svg").write_text(picture(), encoding="utf-8")
