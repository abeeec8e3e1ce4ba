"""The rules of the house: who may import what, how full a folder may be, and what must never be called.

A *place* is a file or a folder. Within a room, places stand on floors: a file imports from lower floors or from its own
folder, so no file and no folder is ever part of a circle. Imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("launch", "trainer", "parallel", "data_shards")
# One module above all of them, for `import fleximoe`; nobody imports it.
ROOF = "fleximoe"
MAY_IMPORT = {
    ROOF: set(ROOMS),
    "launch": {"launch", "trainer", "parallel", "data_shards"},
    "trainer": {"trainer", "parallel", "data_shards"},
    "parallel": {"parallel"},
    "data_shards": {"data_shards"},
}
MOST_FILES = 12
# Top first; places in one row do not import each other. A place that is a folder stands for everything below it.
FLOORS = {
    "launch": (
        ("__main__",),
        ("cli",),
        ("verbs",),
        ("sweep", "api"),
        ("report",),
        ("runs",),
        ("doctor", "ray_train", "serving"),
        ("compare", "datasets", "draft", "plan", "cluster", "cluster_files", "mlflow_ui"),
        ("output", "errors", "versions"),
    ),
    "trainer": (
        ("__main__",),
        ("jobs",),
        ("training",),
        ("evaluation", "ensemble"),
        ("session", "inference", "baseline"),
        ("models",),
        ("figures",),
        ("metrics",),
        ("checkpoints", "tracking", "run_lease"),
        ("config", "worker"),
        ("run_folder",),
    ),
    "trainer/models": (
        ("mope/job_type",),
        ("mope/prompt_experts", "mope/host"),
        ("mope/towers", "fusemoe"),
        ("mope/prompts", "encoders"),
        ("pretrained",),
        ("job_type", "gpu_limits"),
        ("flops",),
        ("object_flops", "encoder_groups"),
        ("convolutions", "numbers"),
        ("layers", "output"),
    ),
    "parallel": (("engine",), ("mesh",), ("tables",), ("moe",), ("config", "control")),
    "data_shards": (
        ("loading", "packing", "inspection"),
        ("lease",),
        ("sources",),
        ("shards",),
        ("records",),
        ("paths", "permutation", "config", "yaml_file", "parquet", "node_arrays", "crew"),
        ("errors", "scratch"),
    ),
}
# The rooms' faces: lazy, so the names in them are no imports of theirs.
FACES = ("data_shards/__init__.py", "parallel/__init__.py", "trainer/__init__.py")
# Library -> what the names of the files that may import it begin with.
ONLY_IN = {
    "deepspeed": "parallel/engine/engine.py",
    "mlflow": "trainer/tracking/mlflow_",
    "ray": "launch/",
    "tensorboard": "trainer/tracking/elsewhere/tensorboard_events.py",
    "wandb": "trainer/tracking/elsewhere/wandb_offline.py",
    "yaml": "data_shards/yaml_file.py",
}
NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
RUNS_CODE = {"eval", "exec", "yaml.load", "yaml.unsafe_load"}

Source = tuple[str, ast.Module]
Arrows = dict[str, set[str]]


def sources(folders: Iterable[str] = (ROOF, *ROOMS)) -> list[Source]:
    files = [ROOT / f"{ROOF}.py"] if ROOF in folders else []
    files += [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def imports(name: str, tree: ast.Module) -> Iterator[tuple[str, list[str], int]]:
    """(module, names taken from it, line) of every import, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, [], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, [alias.name for alias in node.names], node.lineno
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{name}:{node.lineno}: relative import; write the full name")


def wrong_arrows(files: list[Source]) -> list[str]:
    """Imports from a room above or beside, of a library outside of its door, of what loads pickles."""
    found = []
    for name, tree in files:
        room = name.split("/")[0].removesuffix(".py")
        for module, _, line in imports(name, tree):
            package = module.split(".")[0]
            if package in MAY_IMPORT and package not in MAY_IMPORT[room]:
                found.append(f"{name}:{line} imports {package}, and {room} may import {sorted(MAY_IMPORT[room])}")
            if package in ONLY_IN and not name.startswith(ONLY_IN[package]):
                found.append(f"{name}:{line} imports {package}, which belongs in {ONLY_IN[package]}")
            if package in NEVER:
                found.append(f"{name}:{line} imports {package}: no pickle is ever loaded")
    return found


def arrows(files: list[Source]) -> Arrows:
    """File -> the files of the house that it imports. Packages without names of their own lead to their files."""
    names = {name for name, _ in files}
    found: Arrows = {name: set() for name in names}
    for name, tree in files:
        if name in FACES:
            continue
        for module, taken, _ in imports(name, tree):
            path = module.replace(".", "/")
            for end in [f"{path}/{word}" for word in taken] + [path]:
                found[name] |= {end + tail for tail in (".py", "/__init__.py")} & names
    for name, ends in found.items():
        ends.discard(name)
    return found


def circles(graph: Arrows) -> list[list[str]]:
    """Groups of places of which each leads to each other (Tarjan's strongly connected components, larger than one)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(place: str) -> None:
        order[place] = low[place] = len(order)
        stack.append(place)
        for end in sorted(graph[place]):
            if end not in order:
                visit(end)
                low[place] = min(low[place], low[end])
            elif end in stack:
                low[place] = min(low[place], order[end])
        if low[place] == order[place]:
            group = stack[stack.index(place) :]
            del stack[stack.index(place) :]
            if len(group) > 1:
                found.append(sorted(group))

    for place in sorted(graph):
        if place not in order:
            visit(place)
    return found


def folder_arrows(graph: Arrows) -> Arrows:
    """Folder -> the folders whose files its own files import; a folder and what lies in it are two."""
    folders: Arrows = {}
    for name, ends in graph.items():
        own = folders.setdefault(str(PurePosixPath(name).parent), set())
        own |= {str(PurePosixPath(end).parent) for end in ends}
    for folder, ends in folders.items():
        ends.discard(folder)
        # The room's face and registries lie in the folder above; what they lazily name is no way back.
        ends -= {str(above) for above in PurePosixPath(folder).parents}
    return folders


def floor_of(name: str, level: str) -> tuple[int, str] | None:
    """(floor, place) of a file below `level`, 0 is the top; None if it lies elsewhere or is a face."""
    if not name.startswith(f"{level}/") or name.endswith("__init__.py"):
        return None
    rest = name.removeprefix(f"{level}/").removesuffix(".py")
    for number, places in enumerate(FLOORS[level]):
        for place in places:
            if rest == place or rest.startswith(f"{place}/"):
                return number, place
    raise AssertionError(f"{name} stands on no floor of {level}: give its folder a place in FLOORS")


def wrong_floors(graph: Arrows) -> list[str]:
    """Arrows that lead up, or to another place of the same floor."""
    found = []
    for name, ends in sorted(graph.items()):
        for end in sorted(ends):
            for level in FLOORS:
                start, goal = floor_of(name, level), floor_of(end, level)
                if start is None or goal is None or start[1] == goal[1] or start[0] < goal[0]:
                    continue
                found.append(f"{name} imports {end}: {start[1]} may not import {goal[1]}")
    return found


def full_folders(names: Iterable[str]) -> list[str]:
    counts = Counter(str(PurePosixPath(name).parent) for name in names if not name.endswith("__init__.py"))
    return [f"{folder} holds {count} files" for folder, count in counts.items() if count > MOST_FILES]


def busy_faces(files: list[Source]) -> list[str]:
    """`__init__.py` files that hold more than a docstring; the rooms' faces and the registry of sources may."""
    allowed = {*FACES, "data_shards/sources/__init__.py"}
    return [
        name
        for name, tree in files
        if name.endswith("__init__.py") and name not in allowed and (len(tree.body) != 1 or not ast.get_docstring(tree))
    ]


def borrowed_names(files: list[Source]) -> list[str]:
    """Names taken from a file that has imported them itself: each is to come from the file that defines it."""
    defined: dict[str, set[str]] = {}
    for name, tree in files:
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        own = defined.setdefault(module, set())
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            own |= {item.id for target in targets if target for item in ast.walk(target) if isinstance(item, ast.Name)}
            own |= {node.name} if hasattr(node, "name") else set()
    modules = set(defined)
    faces = {face.removesuffix("/__init__.py") for face in FACES}
    return [
        f"{name}:{line} takes {word} from {module}, which does not define it"
        for name, tree in files
        if name not in FACES
        for module, taken, line in imports(name, tree)
        if module in modules and module not in faces
        for word in taken
        if word not in defined[module] and f"{module}.{word}" not in modules
    ]


def strange_folders(names: Iterable[str]) -> list[str]:
    """Test files in folders that the room does not have; what is of no room lies right below tests/."""
    return [name for name in names if "/" in name and not (ROOT / PurePosixPath(name).parent).is_dir()]


def unsafe_calls(files: list[Source]) -> list[str]:
    """Calls that can run code from a file: torch.load without weights_only=True, allow_pickle, eval, exec."""
    found = []
    for name, tree in files:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            callee, words = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if callee == "torch.load" and words.get("weights_only") != "True":
                found.append(f"{name}:{node.lineno} torch.load without weights_only=True")
            if words.get("allow_pickle", "False") != "False" or callee in RUNS_CODE:
                found.append(f"{name}:{node.lineno} {callee} can run what it reads")
    return found


def test_rooms_import_one_way_and_libraries_stay_behind_their_door():
    files = sources()
    assert len(files) > 200, "the rooms were not found"
    assert wrong_arrows(files) == []


def test_no_circle_of_files():
    assert circles(arrows(sources())) == []


def test_no_circle_of_folders():
    assert circles(folder_arrows(arrows(sources()))) == []


def test_floors():
    assert wrong_floors(arrows(sources())) == []


def test_folders_are_small_and_have_no_face_of_their_own():
    files = sources()
    assert full_folders(name for name, _ in files) == []
    assert busy_faces(files) == []


def test_names_come_from_the_file_that_defines_them():
    assert borrowed_names(sources()) == []


def test_tests_lie_where_what_they_test_lies():
    assert strange_folders(str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")) == []


def test_nothing_loads_pickles_or_evaluates_text():
    assert unsafe_calls(sources()) == []


def test_every_module_says_what_it_is():
    silent = [name for name, tree in sources() if not ast.get_docstring(tree)]
    assert silent == []


# Mutations: each rule finds what it is there for.


def house(**files: str) -> list[Source]:
    """A small house: `trainer__loop="import x"` is the file trainer/loop.py."""
    return [(name.replace("__", "/") + ".py", ast.parse(code)) for name, code in files.items()]


@pytest.mark.parametrize(
    ("name", "code", "complaint"),
    [
        ("parallel__x", "import trainer.training.loop", "imports trainer"),
        ("launch__api__x", "def f():\n    import fleximoe", "imports fleximoe"),
        ("data_shards__x", "from fleximoe import fit", "imports fleximoe"),
        ("fleximoe", "import ray", "belongs in launch/"),
        ("data_shards__x", "def f():\n    from parallel import mesh", "imports parallel"),
        ("trainer__x", "import ray.train", "belongs in launch/"),
        ("trainer__training__loop", "import deepspeed", "belongs in parallel/engine/engine.py"),
        ("launch__x", "def f():\n    import yaml", "belongs in data_shards/yaml_file.py"),
        ("launch__x", "from mlflow import MlflowClient", "belongs in trainer/tracking/mlflow_"),
        ("trainer__tracking__create", "import mlflow", "belongs in trainer/tracking/mlflow_"),
        ("trainer__tracking__create", "def f():\n    import wandb", "belongs in trainer/tracking/elsewhere/wandb_"),
        ("trainer__x", "import pickle", "no pickle"),
    ],
)
def test_a_wrong_import_is_found(name, code, complaint):
    assert complaint in wrong_arrows(house(**{name: code}))[0]


@pytest.mark.parametrize(
    "late",
    ["from trainer.a import f", "def g():\n    from trainer import a", "if TYPE_CHECKING:\n    import trainer.a"],
)
def test_a_circle_of_files_is_found(late):
    files = house(trainer__a="from trainer.b import g", trainer__b=late, trainer__c="import trainer.a")
    assert circles(arrows(files)) == [["trainer/a.py", "trainer/b.py"]]


def test_a_circle_of_folders_is_found():
    files = house(launch__x__a="import launch.y.a", launch__y__a="", launch__y__b="import launch.x.b", launch__x__b="")
    assert circles(arrows(files)) == []
    assert circles(folder_arrows(arrows(files))) == [["launch/x", "launch/y"]]


@pytest.mark.parametrize(
    ("upper", "lower", "complaint"),
    [
        ("trainer__jobs__train", "trainer__training__loop", "training may not import jobs"),
        ("trainer__checkpoints__find", "trainer__tracking__spool", "tracking may not import checkpoints"),
        ("trainer__models__mope__job_type", "trainer__models__fusemoe__block", "fusemoe may not import mope/job_type"),
        ("launch__verbs__data", "launch__datasets__pack", "datasets may not import verbs"),
    ],
)
def test_an_arrow_that_leads_up_or_across_is_found(upper, lower, complaint):
    files = house(**{upper: "", lower: f"def f():\n    import {upper.replace('__', '.')}"})
    assert complaint in wrong_floors(arrows(files))[0]


def test_a_file_without_a_floor_is_found():
    with pytest.raises(AssertionError, match="stands on no floor of trainer"):
        wrong_floors(arrows(house(trainer__attic__x="import trainer.session", trainer__session="")))


def test_a_relative_import_is_found():
    with pytest.raises(AssertionError, match="relative import"):
        arrows(house(trainer__x="from . import session"))


def test_a_full_folder_is_found():
    names = [f"trainer/jobs/{letter}.py" for letter in "abcdefghijklm"]
    assert full_folders(names[:12]) == [] and full_folders(names) == ["trainer/jobs holds 13 files"]


def test_a_face_and_a_borrowed_name_are_found():
    face = ("trainer/jobs/__init__.py", ast.parse('"""Jobs."""\nfrom trainer.jobs.job import run'))
    assert busy_faces([face]) == ["trainer/jobs/__init__.py"]
    files = house(trainer__a="def f(): ...", trainer__b="from trainer.a import f", trainer__c="from trainer.b import f")
    assert borrowed_names(files) == ["trainer/c.py:1 takes f from trainer.b, which does not define it"]


def test_a_test_in_a_folder_that_no_room_has_is_found():
    found = strange_folders(["test_x.py", "trainer/jobs/test_x.py", "trainer/attic/test_x.py"])
    assert found == ["trainer/attic/test_x.py"]


@pytest.mark.parametrize("code", ["torch.load(f)", "np.load(f, allow_pickle=True)", "eval(text)", "yaml.load(f)"])
def test_an_unsafe_call_is_found(code):
    assert unsafe_calls([("trainer/x.py", ast.parse(code))])
