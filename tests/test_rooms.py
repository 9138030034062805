"""The house has floors: a module imports only from floors below its own, and the front door is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import valuegraph

PACKAGE = Path(valuegraph.__file__).parent

# A module that appears in the package must be given a floor here. "integrations." holds for every module in it.
FLOORS = {
    "episodes": 0,
    "credit": 0,
    "alignment": 0,
    "importers": 1,
    "encoders": 1,
    "index": 1,
    "propagation": 1,
    "graph": 2,
    "networks": 2,
    "learner": 3,
    "scoring": 3,
    "explain": 3,
    "persistence": 4,
    "reward_model": 5,
    "cli": 6,
    "server": 6,
    "integrations.": 6,
}
# The only imports that do not point downward: (importer, imported).
DOORS = {
    ("episodes", "importers"),  # read_episodes hands a format it does not know upstairs, inside the function
    ("scoring", "learner"),
    ("explain", "scoring"),
    ("cli", "server"),
}

HEAVY = (
    "torch",
    "lightning",
    "sentence_transformers",
    "transformers",
    "faiss",
    "numba",
    "pyarrow",
    "ray",
    "trl",
)


def modules() -> dict[str, Path]:
    """Every module of the package but its front door, by dotted name below `valuegraph`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def floor(name: str) -> int | None:
    """The floor of a module, or None where it has been given none."""
    if name in FLOORS:
        return FLOORS[name]
    return next((n for room, n in FLOORS.items() if room.endswith(".") and f"{name}.".startswith(room)), None)


def imports(source: str, module: str, *, package: bool = False) -> set[str]:
    """Modules of `valuegraph` that the source imports anywhere, inside functions and TYPE_CHECKING blocks too."""
    here = ["valuegraph", *module.split(".")][: None if package else -1]
    targets = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from valuegraph import graph` names a module, `from valuegraph.graph import ValueGraph` does not.
            targets |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func) and node.args:
            if isinstance(node.args[0], ast.Constant):
                targets.add(node.args[0].value)
    known = modules()
    return {t.removeprefix("valuegraph.") for t in targets if t.removeprefix("valuegraph.") in known}


def violations(name: str, source: str, *, package: bool = False) -> list[str]:
    """The imports of one module that do not point downward."""
    return [
        f"{name} (floor {floor(name)}) imports {target} (floor {floor(target)})"
        for target in sorted(imports(source, name, package=package) - {name})
        if floor(target) >= floor(name) and (name, target) not in DOORS
    ]


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter that runs `code` in the repository's root."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_every_module_has_a_floor():
    homeless = [name for name in modules() if floor(name) is None]
    assert not homeless, f"give {homeless} a floor in FLOORS"


@pytest.mark.parametrize("name", modules())
def test_imports_point_downward(name):
    path = modules()[name]
    assert not violations(name, path.read_text("utf-8"), package=path.name == "__init__.py")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("episodes", "from valuegraph.episodes import Step\nimport valuegraph.{upper}"),
        ("episodes", "def late():\n    from valuegraph import {upper}"),
        ("episodes", "from . import {upper}"),
        ("episodes", "from .{upper} import anything"),
        ("episodes", "def late():\n    importlib.import_module('valuegraph.{upper}')"),
        ("episodes", "if TYPE_CHECKING:\n    from valuegraph.{upper} import anything"),
    ],
)
def test_control_an_upward_import_is_found(name, source, monkeypatch):
    monkeypatch.setitem(globals(), "modules", lambda: {"episodes": None, "graph": None})
    assert violations(name, source.format(upper="graph")) == ["episodes (floor 0) imports graph (floor 2)"]


def test_the_front_door_resolves_every_public_name_lazily():
    assert set(valuegraph._HOME) | {"__version__"} == set(valuegraph.__all__)
    assert set(valuegraph.__all__) <= set(dir(valuegraph))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = valuegraph.nonsense


def test_import_loads_nothing_heavy():
    loaded = f"import sys, valuegraph; print(*(m for m in {HEAVY} if m in sys.modules))"
    assert run_python(loaded) == ""
    # Control: the same question does see a module that was loaded.
    assert run_python(loaded.replace("import sys,", "import sys, numba,")) == "numba"


def test_import_takes_less_than_half_a_second():
    clock = "import time; t = time.perf_counter(); import valuegraph; print(time.perf_counter() - t)"
    assert min(float(run_python(clock)) for _ in range(5)) < 0.5
