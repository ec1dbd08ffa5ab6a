"""What a newcomer types first: the pins agree, the badges lead home, the notebooks are clean."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
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


def every_line():
    return [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]


def requirements(*groups):
    listed = [*PROJECT["dependencies"], *(line for group in groups for line in EXTRAS[group])]
    return {canonicalize_name(r.name): r for r in map(Requirement, listed)}


def test_every_requirement_is_pinned_to_a_version_it_allows():
    pinned = pins()
    for name, requirement in requirements(*EXTRAS).items():
        assert requirement.specifier.contains(pinned[name]), name


def test_environment_yml_names_the_same_packages_at_the_pinned_versions():
    _, options, listed = conda()
    assert {canonicalize_name(r.name) for r in listed} == set(
        requirements("lab", "test", "gpu", "site")
    )
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


def test_continuous_integration_calls_make_test_on_two_systems_and_two_pythons():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert any(step.get("run", "").startswith("make test") for step in job["steps"])
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert {system.split("-")[0] for system in job["strategy"]["matrix"]["os"]} == {
        "ubuntu",
        "macos",
    }


def test_the_workflows_actions_run_on_a_node_that_is_still_there():
    first_on_node_24 = {
        "actions/checkout": 5,
        "actions/setup-python": 6,
        "actions/cache": 5,
        "actions/upload-pages-artifact": 5,
        "actions/deploy-pages": 5,
    }
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            for step in job["steps"]:
                if "uses" in step:
                    name, version = step["uses"].split("@v")
                    assert int(version) >= first_on_node_24[name], step["uses"]


def test_uv_sync_reads_the_same_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = dict(line.split("==") for line in project["tool"]["uv"]["constraint-dependencies"])
    assert listed == pins()


def locked():
    return tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))


def test_the_lock_of_uv_holds_the_pinned_set_and_nothing_else():
    versions = {row["name"]: row["version"] for row in locked()["package"]}
    # torch itself names the one version of each CUDA library that it takes
    cuda = {name for name in versions if re.match("cuda-|nvidia-|triton$", name)}
    assert {n: v for n, v in versions.items() if n not in cuda} == pins() | {
        "baize-course": PROJECT["version"]
    }


def test_the_lock_of_uv_is_made_from_the_requirements_of_today():
    lock = locked()
    own = next(row for row in lock["package"] if row["name"] == "baize-course")
    wanted = sorted(f"{r.name} {r.specifier}" for r in map(Requirement, every_line()))
    assert wanted == sorted(
        f"{row['name']} {SpecifierSet(row.get('specifier', ''))}"
        for row in own["metadata"]["requires-dist"]
    )
    assert {row["name"]: row["specifier"][2:] for row in lock["manifest"]["constraints"]} == pins()
    assert SpecifierSet(lock["requires-python"]) == SpecifierSet(PROJECT["requires-python"])


def test_the_lock_of_uv_names_public_files_with_their_hashes_and_a_wheel_of_each_package():
    public = "https://files.pythonhosted.org/packages/"
    for row in locked()["package"]:
        if row["name"] == "baize-course":
            continue
        assert row["source"] == {"registry": "https://pypi.org/simple"}, row["name"]
        assert row["wheels"], row["name"]
        for file in [*row["wheels"], row.get("sdist") or row["wheels"][0]]:
            assert file["url"].startswith(public), file["url"]
            assert re.fullmatch("sha256:[0-9a-f]{64}", file["hash"]), file["url"]


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0"])
def test_the_pinned_set_allows_every_python_that_the_course_allows(python):
    pinned = pins()
    for found in distributions():
        name = canonicalize_name(found.name)
        if name == "audioop-lts":
            continue  # gradio asks for it from 3.13 on, where audioop has left the standard library
        needs = found.metadata.get("Requires-Python")
        if needs and found.version == pinned.get(name):
            assert SpecifierSet(needs).contains(python), f"{name} {found.version} wants {needs}"


def make(*arguments, **environment):
    """What make would do, without doing it."""
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"]} | environment,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("command", ["course", "bonus", "demo", "lab", "render"])
def test_the_tier_in_the_environment_counts_in_every_command(command, tmp_path):
    shown = tmp_path / "show.mk"
    shown.write_text("$(info tier=$(BAIZE_TIER))\n")
    both = ("-f", "Makefile", "-f", str(shown), command)
    assert "tier=ci\n" in make(*both, BAIZE_TIER="ci")
    assert "tier=a100\n" in make(*both, "TIER=a100", BAIZE_TIER="ci")
    assert "tier=laptop\n" in make(*both)


def test_jupyter_is_let_run_as_root_only_for_root(tmp_path):
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    assert "--allow-root" not in make("lab", PATH=f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "id").write_text("#!/bin/sh\necho 0\n")
    assert "--allow-root" in make("lab", PATH=f"{tmp_path}:{os.environ['PATH']}")


def test_notebooks_typed_into_pytest_by_hand_have_an_hour_a_cell():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    options = tomllib.loads(text)["tool"]["pytest"]["ini_options"]["addopts"]
    assert "--nbmake-timeout=3600" in options


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """What a notebook's first cell runs on Colab, in a kernel whose Drive is a folder here."""
    mounted = []
    drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    monkeypatch.chdir(tmp_path)
    space = {"mounted": mounted}
    exec((ROOT / "binder/colab.py").read_text(encoding="utf-8"), space)
    return SimpleNamespace(**space)


def test_on_colab_what_is_loaded_keeps_its_version(colab):
    assert colab.in_use()["pytest"] == pytest.__version__
    for module in ("jupyterlab", "sphinx_book_theme", "openai"):  # other tests may have loaded one
        assert (module.replace("_", "-") in colab.in_use()) == (module in sys.modules)
    kept = colab.not_loaded("psutil==7.2.2\npeft==0.21.2\nPyYAML==6", {"psutil": "5.9.5"})
    assert kept == "peft==0.21.2\nPyYAML==6"


def test_on_colab_what_failed_is_said_in_the_installers_own_words(colab, tmp_path):
    pytest.importorskip("pip", reason="an environment made by uv has none")
    with pytest.raises(RuntimeError, match=r"cannot be read .* run this cell again"):
        colab.install(tmp_path.as_uri(), "main")
    (tmp_path / "copy/raw/main").mkdir(parents=True)
    shutil.copy(ROOT / "constraints.txt", tmp_path / "copy/raw/main")
    answers = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        Thread(target=server.serve_forever).start()
        with pytest.raises(RuntimeError) as failed:
            colab.install(f"http://127.0.0.1:{server.server_port}/copy", "main")
        server.shutdown()
    assert re.search("fatal: repository '.*' not found", str(failed.value))
    assert "Restart session, then run this cell again" in str(failed.value)


def test_on_colab_the_cell_sets_the_tier_and_keeps_runs_on_drive_when_asked(colab, monkeypatch):
    monkeypatch.setenv("BAIZE_RUNS", "")
    monkeypatch.setenv("BAIZE_TIER", "")
    colab.place("t4", keep_on_drive=False)
    assert os.environ["BAIZE_TIER"] == "t4" and not os.environ["BAIZE_RUNS"]
    colab.place("laptop", keep_on_drive=True)
    assert colab.mounted == ["/content/drive"]
    assert os.environ["BAIZE_RUNS"].startswith("/content/drive/MyDrive/")


def test_binder_and_codespaces_install_the_pinned_set_from_the_clones_root():
    lines = (ROOT / "binder/requirements.txt").read_text(encoding="utf-8").splitlines()
    # pip takes a constraints file from beside the list, but a folder to install from where it runs
    assert lines[-2:] == ["-c ../constraints.txt", "-e .[lab]"]
    assert (ROOT / "binder/start").stat().st_mode & 0o111
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    command = container["postCreateCommand"]
    assert command.startswith("make .venv/ready")
    assert "-m pip" in make("-W", "pyproject.toml", *command.split()[1:])  # as in a fresh clone


def test_a_copy_of_the_course_is_named_by_one_command(tmp_path):
    for folder in ("notebooks", ".ci", "instructor"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    before = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    command = [sys.executable, ".ci/badge.py", "someone/their-course", "v1.0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    first = (tmp_path / "notebooks/00_start_here.ipynb").read_text(encoding="utf-8")
    assert "someone/their-course/blob/v1.0/notebooks/00_start_here.ipynb" in first
    assert r"someone/their-course\", \"v1.0\"" in first
    for path in [
        tmp_path / "pyproject.toml",
        tmp_path / "README.md",
        *tmp_path.glob("notebooks/**/*.ipynb"),
        *tmp_path.glob("instructor/*.md"),
    ]:
        assert before not in path.read_text(encoding="utf-8"), path.name


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_its_badge_opens_this_notebook_of_this_repository(self, path):
        address = PROJECT["urls"]["Notebooks"].removeprefix("https://github.com/")
        where = path.relative_to(ROOT / "notebooks").as_posix()
        badge = f"https://colab.research.google.com/github/{address}/{where}"
        assert badge in "".join(cells(path, "markdown")[0]["source"])

    def test_its_colab_cell_is_the_one_of_notebook_00(self, path):
        own, first = (
            next("".join(c["source"]) for c in cells(p, "code") if "google.colab" in str(c))
            for p in (path, NOTEBOOKS[0])
        )
        assert own == first
        address, _, version = PROJECT["urls"]["Notebooks"].partition("/blob/")
        assert address == PROJECT["urls"]["Repository"]
        assert f'course, version = "{address}", "{version.removesuffix("/notebooks")}"' in own

    def test_its_formulas_can_be_read_without_a_network(self, path):
        prose = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", prose, flags=re.DOTALL)
        assert not re.findall(r"(?<!\\)\$", prose)

    def test_its_outputs_are_from_one_clean_run(self, path):
        code = cells(path, "code")
        if not any(c["execution_count"] or c["outputs"] for c in code):
            pytest.skip(f"{path.stem} waits for a render: no outputs, rather than old ones")
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


MAIN = [path for path in NOTEBOOKS if path.stem[:2] <= "06" and path.parent.name == "notebooks"]
CARD = r"\| your time \| (\d+) minutes, and (\d+) for the exercises \|"


def learner_minutes(path):
    """(reading, exercises) in minutes, by the rule that notebook 00 states.

    200 words and 12 lines of code a minute, half a minute a figure (the code that draws it, imports
    and the cells that every notebook opens with are skipped), and what each exercise says, but not
    those "for those who have time".
    """
    lines = figures = 0
    prose = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    said = re.findall(r"\*\*Exercise \d+\*\* \([^)]*?(\d+) minutes[,)]", prose)
    read, _, rest = re.sub(r"<details>.*?</details>", "", prose, flags=re.DOTALL).partition(
        "## Try it"
    )
    words = len((read + rest.partition("## Key points")[2]).split())
    for cell in cells(path, "code"):
        source = "".join(cell["source"])
        figures += source.count("plots.show(")
        if not re.search(r"google\.colab|check_environment|check_exercise\(|plots\.show\(", source):
            lines += len(re.findall(r"^(?!from |import ).*\w", source, re.MULTILINE))
    return words / 200 + lines / 12 + figures / 2, sum(map(int, said))


@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.stem)
def test_the_learners_minutes_on_the_card_are_those_of_the_rule(path):
    card = re.search(CARD, "".join(cells(path, "markdown")[1]["source"]))
    assert card, f"{path.stem}: no row 'your time' on its card"
    reading, exercises = learner_minutes(path)
    assert abs(int(card[1]) / reading - 1) <= 0.2, f"{path.stem}: reading takes {reading:.0f}"
    assert int(card[2]) == exercises


def test_the_main_line_with_its_exercises_takes_three_hours_at_most():
    spent = {path.stem: sum(learner_minutes(path)) for path in MAIN}
    assert sum(spent.values()) <= 180, spent
    assert "take three hours at most" in "".join(cells(MAIN[0], "markdown")[1]["source"])


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks in this checkout")
def test_the_readme_links_every_notebook_and_repeats_the_repository():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        if "zh" not in path.parts:  # those are in README.zh.md
            assert path.relative_to(ROOT).as_posix() in readme, path.name
    address = PROJECT["urls"]["Repository"]
    others = set(re.findall(r"https://github\.com/[\w-]+/[\w-]+", readme))
    assert address in readme
    assert all(a == address or "project-baize" in a for a in others), others
