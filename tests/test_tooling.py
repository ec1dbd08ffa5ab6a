"""What a newcomer types first: the pins agree, the badges lead home, the notebooks are clean."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def conda():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [line for line in environment["dependencies"] if isinstance(line, str)]
    piped = next(line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    options = [line for line in piped if line.startswith("-")]
    return plain, options, [Requirement(line) for line in piped if not line.startswith("-")]


def requirements(*groups):
    listed = [*PROJECT["dependencies"], *(line for group in groups for line in EXTRAS[group])]
    return {canonicalize_name(r.name): r for r in map(Requirement, listed)}


def test_every_requirement_is_pinned_to_a_version_it_allows():
    pinned = pins()
    for name, requirement in requirements(*EXTRAS).items():
        assert requirement.specifier.contains(pinned[name]), name


def test_environment_yml_names_the_same_packages_at_the_pinned_versions():
    _, options, listed = conda()
    assert {canonicalize_name(r.name) for r in listed} == set(requirements("lab", "test", "gpu"))
    for requirement in listed:
        assert str(requirement.specifier) == f"=={pins()[canonicalize_name(requirement.name)]}"
    assert options == ["-c constraints.txt", "-e ."]


def test_environment_yml_has_a_python_the_project_allows():
    plain, *_ = conda()
    version = next(line for line in plain if line.startswith("python=")).split("=")[1]
    assert version in PROJECT["requires-python"]


def test_the_packages_the_course_promises_are_required():
    promised = "jupyterlab openai transformers peft torch bitsandbytes datasets pandas matplotlib"
    assert set(promised.split()) | {"nbmake", "pytest"} <= set(requirements(*EXTRAS))


def test_pre_commit_runs_what_make_test_lints():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    commands = {tuple(h["entry"].split()[1:2]) for r in hooks["repos"] for h in r["hooks"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    linted = {tuple(found) for found in re.findall(r"\$\(BIN\)/ruff (\w+)()", makefile)}
    assert {c[0] for c in commands} == {c[0] for c in linted}


def test_continuous_integration_calls_make_test():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert any(step.get("run", "").startswith("make test") for step in steps)
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_its_badge_opens_this_notebook_of_this_repository(self, path):
        address = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
        where = path.relative_to(ROOT).as_posix()
        badge = f"https://colab.research.google.com/github/{address}/blob/main/{where}"
        assert badge in "".join(cells(path, "markdown")[0]["source"])

    def test_its_outputs_are_from_one_clean_run(self, path):
        code = cells(path, "code")
        assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
        assert not [o for c in code for o in c["outputs"] if o["output_type"] == "error"]
        assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
        assert path.stat().st_size < 1_000_000

    def test_it_shows_no_path_of_a_machine(self, path):
        text = path.read_text(encoding="utf-8")
        # deep enough to be real: a model that writes code makes up a "/home/c" of its own
        real = r"/(home|Users)/\w+/\w|/(root|work|tmp)/\w|/usr/\S*python3"
        assert not re.search(real, text)

    def test_its_cells_are_short(self, path):
        for cell in cells(path, "code"):
            lines = "".join(cell["source"]).splitlines()
            assert len(lines) <= 25, lines[0]
            assert max(map(len, lines), default=0) <= 88, max(lines, key=len)

    def test_every_picture_has_alt_text(self, path):
        text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
        assert "![](" not in text
        assert all("alt=" in tag for tag in re.findall(r"<img [^>]*>", text))


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks in this checkout")
def test_the_readme_links_every_notebook_and_repeats_the_repository():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert path.relative_to(ROOT).as_posix() in readme, path.name
    address = PROJECT["urls"]["Repository"]
    others = set(re.findall(r"https://github\.com/[\w-]+/[\w-]+", readme))
    assert address in readme
    assert all(a == address or "project-baize" in a for a in others), others
