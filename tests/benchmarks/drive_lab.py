"""The course in JupyterLab as a learner sees it: a browser runs the main notebooks at tier ci.

    python tests/benchmarks/drive_lab.py [--notebooks 01 03] [--shots FOLDER]   # needs Chromium

Each notebook is opened and run by JupyterLab's own menus, and looked at in its light and its dark
theme. The table says: code cells that ran; cells that ended in an error, as none is meant to;
pictures shown, and those without alt text (JupyterLab 4.6 drops that of a cell's picture); errors
in the browser's console (JupyterLab itself may log one at a restart); the lowest
contrast of text to its ground in the HTML that the course draws, light and dark (WCAG 2 asks 4.5,
and 3 of large text); seconds from "Restart" to the last cell. All that is driven is in a temporary
folder: copies of the notebooks, without outputs, and a new run.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor
from playwright.sync_api import TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
ROW = "{:<27}{:>9}{:>8}{:>10}{:>8}{:>9}{:>7.1f}{:>6.1f}{:>9.0f}"
OUT = ".jp-OutputArea-output"
PLACES = {"top": ".jp-Cell h1", "figure": f"{OUT} img", "table": f"{OUT} table", "talk": f"{OUT} b"}


def copy_course(names, course):
    """The notebooks without outputs, beside the figures that their texts show."""
    (course / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "figures", course / "figures")
    for name in names:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        ClearOutputPreprocessor().preprocess(notebook, {})
        nbformat.write(notebook, course / "notebooks" / f"{name}.ipynb")


@contextlib.contextmanager
def jupyterlab(folder):
    """JupyterLab on this machine alone, its settings and runs in `folder`; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {k: v for k, v in os.environ.items() if k == "BAIZE_CACHE" or "BAIZE_" not in k}
    told |= {"BAIZE_TIER": "ci", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    told |= {"BAIZE_RUNS": str(folder / "runs"), "JUPYTER_CONFIG_DIR": str(folder / "settings")}
    news = folder / "settings/lab/user-settings/@jupyterlab/apputils-extension"
    news.mkdir(parents=True)  # the question about news would lie over the pictures
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    options = {"ip": "127.0.0.1", "port": port, "port_retries": 0, "token": "", "password": ""}
    options["root_dir"] = folder / "course"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    log, address = folder / "lab.log", f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=told, stdout=out, stderr=out)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urlopen(f"{address}/api/status").close()
                break
            time.sleep(0.5)
        else:
            sys.exit(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
        yield address
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()  # a kernel that was just restarting can hold it


def choose(page, *path):
    """Click through a menu as a person does."""
    page.locator("#jp-MainMenu").get_by_text(path[0], exact=True).click()
    for label in path[1:]:
        page.locator(".lm-Menu-itemLabel").get_by_text(label, exact=True).click()


def drive(page, address, name, shots):
    """Run one notebook and look at it: counts, seconds, lowest contrast by theme, complaints."""
    said = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda told: said.append(told.text) if told.type == "error" else None)
    page.goto(f"{address}/lab/tree/notebooks/{name}.ipynb?reset")
    page.add_script_tag(path=Path(__file__).with_suffix(".js"))
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)  # in the status bar
    for _ in range(3):  # the server can lose what is sent while it connects to the new kernel
        choose(page, "Kernel", "Restart Kernel and Run All Cells…")
        page.locator(".jp-Dialog .jp-mod-accept").click()
        start = time.perf_counter()
        with contextlib.suppress(TimeoutError):
            page.wait_for_function("begun()", timeout=60_000, polling=500)
            break
        said.append("no cell ran within a minute of the restart")
    page.wait_for_function("ended()", timeout=1_800_000, polling=500)
    seconds, lowest = time.perf_counter() - start, {}
    for theme, title in THEMES.items():
        choose(page, "Settings", "Theme", title)
        page.locator(f"body[data-jp-theme-name='{title}']").wait_for(state="attached")
        lowest[theme] = page.evaluate("lowestContrast()")
        for place, css in PLACES.items() if shots else ():
            if page.locator(css).count():
                for _ in range(2):  # what comes into view takes its true height, and others move
                    page.locator(css).first.scroll_into_view_if_needed()
                    page.wait_for_timeout(500)
                page.screenshot(path=shots / f"{name[:2]}_{place}_{theme}.png")
    choose(page, "File", "Save Notebook")
    page.locator("#jp-main-dock-panel .jp-mod-dirty").wait_for(state="detached")
    counts = page.evaluate(f"counts('{name}')")
    choose(page, "Kernel", "Shut Down Kernel")
    return counts, seconds, lowest, said


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notebooks", nargs="+", default=["0"], metavar="01")
    parser.add_argument("--shots", type=Path, help="a folder for screenshots")
    asked = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("no Chromium on this machine: install one")
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    names = [name for name in names if name.startswith(tuple(asked.notebooks))]
    with contextlib.ExitStack() as stack:
        folder, beneath = Path(stack.enter_context(tempfile.TemporaryDirectory())), []
        copy_course(names, folder / "course")
        address = stack.enter_context(jupyterlab(folder))
        play, flags = stack.enter_context(sync_playwright()), ["--no-sandbox", "--disable-gpu"]
        browser = play.chromium.launch(executable_path=chromium, args=flags)
        print(f"{'notebook':<27}cells run  errors  pictures  no alt  console  light  dark  seconds")
        for name in names:
            with browser.new_page(viewport={"width": 1200, "height": 900}) as page:
                counts, seconds, lowest, said = drive(page, address, name, asked.shots)
            row = [*counts, len(said), *(lowest[theme]["value"] for theme in THEMES), seconds]
            print(ROW.format(name, *row), flush=True)
            beneath += [f"{name} console: {text}" for text in said]
            beneath += [f"{name} {theme}: lowest at {lowest[theme]['text']!r}" for theme in THEMES]
    print("", *beneath, sep="\n")


if __name__ == "__main__":
    main()
