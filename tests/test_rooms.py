"""The house has floors: imports point downward only, and the front door is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import valuegraph

PACKAGE = Path(valuegraph.__file__).parent

# Every module of the package, from the ground floor up. A module may import what lives on the floors below it
# and what is named before it on its own floor. "integrations." stands for every module in that folder.
FLOORS = (
    "threads config records episode episodes evidence credit alignment_kernel alignment "
    "edge_kernels value_kernels durable tensor_file wal_format wal manifest regularize",
    "trajectories conversations chat_templates formats importers testing "
    "model_weights text_models embedding_cache array_encoder encoders "
    "locks growing labels texts vectors faiss_search faiss_host faiss_gpu faiss_cagra tiers faiss_build "
    "faiss_store faiss_index index "
    "adjacency edges repairs propagation ray_workers sharded_index block_propagation",
    "context paths placing nodes memories transitions values graph graph_state "
    "networks utility accounts calibration ways",
    "consolidation learner training scores scoring fitting explain",
    "saved_folder persistence bound_folder model_state hub",
    "reward_model ray_fit monitor",
    "integrations._rollouts integrations._tokens integrations._growing integrations. "
    "payloads batching admission http_schemas http_app server demo commands cli",
)
ROOMS = [room for floor in FLOORS for room in floor.split()]

# The one import that points upward, inside a function: formats other than canonical JSON lines go upstairs.
STAIRS = {("episodes", "importers")}

HEAVY = {
    *("torch", "lightning", "sentence_transformers", "transformers"),
    *("faiss", "numba", "scipy", "pyarrow", "ray", "trl"),
}


def modules() -> dict[str, Path]:
    """Every module of the package but its front door, by its dotted name below `valuegraph`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def place(name: str) -> int:
    """How far up a module lives; one without a room sits on the roof."""
    for i, room in enumerate(ROOMS):
        if name == room or (room.endswith(".") and f"{name}.".startswith(room)):
            return i
    return len(ROOMS)


def imports(source: str, name: str, known: set[str], *, package: bool = False) -> set[str]:
    """Which of the `known` modules the source imports anywhere: in functions and TYPE_CHECKING blocks too."""
    here = ["valuegraph", *name.split(".")][: None if package else -1]
    targets = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from valuegraph import graph` names a module, `from valuegraph.graph import Node` does not.
            targets |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            targets |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    inside = {target.removeprefix("valuegraph.") for target in targets if target.startswith("valuegraph.")}
    return {valuegraph._HOME.get(name, name) for name in inside} & known


def upward(name: str, targets: set[str]) -> set[str]:
    """Those of the imported modules that do not live below the importer. A folder may gather its own."""
    own = {target for target in targets if target.startswith(f"{name}.")}
    return {t for t in targets - {name} - own if place(t) >= place(name) and (name, t) not in STAIRS}


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter that runs `code` in the repository's root."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=PACKAGE.parent, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_every_module_has_a_room():
    homeless = [name for name in modules() if place(name) == len(ROOMS)]
    assert not homeless, f"give {homeless} a room in FLOORS"


@pytest.mark.parametrize("name", modules())
def test_imports_point_downward(name):
    path = modules()[name]
    package = path.name == "__init__.py"
    assert not upward(name, imports(path.read_text("utf-8"), name, set(modules()), package=package))


@pytest.mark.parametrize(
    "source",
    [
        "from valuegraph.episodes import Episode\nimport valuegraph.graph",
        "def late():\n    from valuegraph import graph",
        "from valuegraph import ValueGraph",
        "from . import graph",
        "from .graph import anything",
        "def late():\n    importlib.import_module('valuegraph.graph')",
        "if TYPE_CHECKING:\n    from valuegraph.graph import anything",
    ],
)
def test_control_an_upward_import_is_found(source):
    assert upward("credit", imports(source, "credit", {"episodes", "credit", "graph"})) == {"graph"}


def test_control_a_host_of_the_same_name_is_not_ours():
    assert imports("import graph\nfrom graph import anything", "credit", {"graph"}) == set()


def test_control_neighbours_look_one_way():
    assert upward("scoring", {"explain", "learner", "graph"}) == {"explain"}


def test_the_front_door_resolves_every_public_name_lazily():
    assert set(valuegraph._HOME) | {"__version__"} == set(valuegraph.__all__)
    assert set(valuegraph.__all__) <= set(dir(valuegraph))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = valuegraph.nonsense


def test_import_loads_nothing_heavy():
    loaded = f"import sys, valuegraph; print(*sorted({HEAVY} & sys.modules.keys()))"
    assert run_python(loaded) == ""
    # Control: the same question does see a module that was loaded.
    assert run_python(loaded.replace("import sys,", "import sys, scipy,")) == "scipy"


def test_import_takes_less_than_half_a_second():
    # processor time: a busy machine is no fault of the import
    clock = "import time; t = time.process_time(); import valuegraph; print(time.process_time() - t)"
    assert min(float(run_python(clock)) for _ in range(5)) < 0.5
