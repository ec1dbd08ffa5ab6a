"""The house: ten wings in the order of the pipeline, imports one way, rooms one can read."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "baize_lib"
GROUND = ("config", "dialogue", "files", "text")
WINGS = (
    "ground", "models", "seeds", "teacher", "selfchat", "corpus", "training", "chat",
    "evaluation", "course",
)  # fmt: skip
ROOMS = {
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts): path
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
}
TREES = {room: ast.parse(path.read_text(encoding="utf-8")) for room, path in ROOMS.items()}
HEAVY = ("torch", "transformers", "peft", "datasets", "gradio", "pandas", "matplotlib", "openai")


def wing_of(room):
    return "ground" if room.split(".")[0] in GROUND else room.split(".")[0]


def imported(tree):
    """The rooms and wings a room imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("baize_lib"):
            package = node.module.removeprefix("baize_lib").lstrip(".")
            for alias in node.names:
                full = f"{package}.{alias.name}".lstrip(".")
                yield full if full in ROOMS else package
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("baize_lib.")
                for alias in node.names
                if alias.name.startswith("baize_lib.")
            )


def exported(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [name.value for name in node.value.elts]
    return []


def public_names():
    names = {name: room for room, tree in TREES.items() for name in exported(tree)}
    for path in LIBRARY.rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {name: path.parent.name for name in exported(tree) if name not in names}
    return names


def test_every_room_stands_in_one_of_the_ten_wings():
    assert {wing_of(room) for room in ROOMS} == set(WINGS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_its_own_wing_and_those_above(room):
    own = WINGS.index(wing_of(room))
    lower = [name for name in imported(TREES[room]) if name and WINGS.index(wing_of(name)) > own]
    assert not lower
    assert not [name for name in imported(TREES[room]) if name == wing_of(room) != "ground"]


def test_no_rooms_import_each_other_in_a_circle():
    inside = {
        room: {name for name in imported(tree) if name in ROOMS} for room, tree in TREES.items()
    }
    assert list(TopologicalSorter(inside).static_order())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_short_and_so_are_its_functions(room):
    assert len(ROOMS[room].read_text(encoding="utf-8").splitlines()) <= 450
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(TREES[room])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= 50
    }
    assert not long


def test_the_library_grows_no_further_on_its_way_to_8_500_lines_and_150_names():
    lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in LIBRARY.rglob("*.py")
    )
    assert lines <= 11_560  # a ratchet: lower it whenever the library has become smaller
    assert len(public_names()) <= 130


def test_every_public_name_is_used_by_a_notebook_a_command_or_another_wing():
    readers = {
        path.as_posix(): "\n".join(
            "".join(cell["source"])
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
        )
        for path in (ROOT / "notebooks").rglob("*.ipynb")
    }
    for path in (ROOT / "examples").rglob("*.*"):
        readers[path.name] = path.read_text(encoding="utf-8")
    readers["Makefile"] = (ROOT / "Makefile").read_text(encoding="utf-8")
    sources = {
        room: re.sub(r"__all__ = \[.*?\]", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for room, path in ROOMS.items()
    }
    unused = []
    for name, room in public_names().items():
        elsewhere = (text for r, text in sources.items() if wing_of(r) != wing_of(room))
        if not any(re.search(rf"\b{name}\b", text) for text in (*readers.values(), *elsewhere)):
            unused.append(f"{room}.{name}")
    assert not unused


def test_no_public_name_means_two_things():
    homes = {}
    for room, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                homes.setdefault(node.name, []).append(room)
    names = public_names()
    assert not {name: where for name, where in homes.items() if name in names and len(where) > 1}


@pytest.mark.parametrize("wing", WINGS[1:])
def test_importing_a_wing_loads_nothing_heavy(wing):
    code = f"import sys, baize_lib.{wing}\nprint([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
