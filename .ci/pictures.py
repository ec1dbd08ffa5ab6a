"""Take the pictures of the chat page that README and notebook 06 show, with the recorded adapter.

python .ci/pictures.py            # needs Chromium; the replies are first attempts
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from baize_lib.chat import ChatModel, open_page
from baize_lib.config import Run, data_dir
from baize_lib.models import load_base

FIGURES = Path(__file__).parent.parent / "figures"
QUESTION = "How do I save data to a JSON file in Python?"
LOOKS = {
    "06_page": {"viewport": {"width": 900, "height": 700}, "color_scheme": "light"},
    "06_page_dark": {"viewport": {"width": 900, "height": 700}, "color_scheme": "dark"},
    "06_page_phone": {"viewport": {"width": 390, "height": 700}, "color_scheme": "dark"},
}

chromium = shutil.which("chromium") or shutil.which("google-chrome")
if not chromium:
    sys.exit("no Chromium on this machine: install one")
run = Run(Path(tempfile.mkdtemp()) / "laptop")
chat = ChatModel(load_base("smollm2-135m", "float32"), {"tuned": data_dir() / "adapter"})
opened = open_page(chat, run, prevent_thread_lock=True, quiet=True, inline=False)
with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    for name, look in LOOKS.items():
        page = browser.new_context(**look).new_page()
        page.goto(opened.local_url)
        page.get_by_label("your question").fill(QUESTION)
        page.get_by_role("button", name="Send").click()
        page.wait_for_timeout(1000)
        for note in ("thinking …", "writing …"):
            page.get_by_text(note).first.wait_for(state="detached", timeout=120_000)
        page.screenshot(path=FIGURES / f"{name}.png", full_page=True)
    browser.close()
