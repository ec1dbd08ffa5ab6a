"""Hostile and ordinary programs, each really run in the sandbox."""

import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

from baize_lib.config import BaizeError
from baize_lib.sandbox import Limits, run_code

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's guards are Linux's")
QUICK = Limits(seconds=1)


@pytest.fixture
def secret():
    """A file in the home folder, as a key would be."""
    path = Path.home() / f".baize-sandbox-test-{os.getpid()}"
    path.write_text("sk-secret", encoding="utf-8")
    yield path
    path.unlink()


@pytest.fixture
def server():
    """A web server on this machine that counts who asks."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = 0
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_an_ordinary_program_runs_and_its_files_come_back():
    code = "import json\njson.dump({'a': 1}, open('out.json', 'w'))\nprint('gespeichert 好')"
    outcome = run_code(code, files={"in.txt": "x"})
    assert (outcome.ended, outcome.stdout) == ("ok", "gespeichert 好\n")
    assert outcome.files == {"in.txt": "x", "out.json": '{"a": 1}'}


def test_an_exception_and_an_exit_code_are_errors_and_a_plain_exit_is_not():
    assert "ZeroDivisionError" in run_code("1 / 0").stderr
    assert run_code("import sys; sys.exit(3)").ended == "error"
    assert run_code("exit_code = 0\nraise SystemExit", then="print('then')").stdout == "then\n"
    assert run_code("if True print(1)").ended == "error"


def test_nothing_is_asked_of_the_keyboard_and_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "EOFError" in run_code("input('name? ')").stderr
    assert run_code("import os; print(len(os.environ))").stdout in ("0\n", "1\n")


def test_the_standard_library_can_still_be_imported():
    code = "import csv, datetime, hashlib, random, re, sqlite3, statistics, zoneinfo, tempfile\n"
    assert run_code(code + "print(random.random(), hashlib.md5(b'').hexdigest())").ended == "ok"


def test_an_endless_loop_and_a_sleeper_run_out_of_time():
    assert run_code("while True: pass", limits=QUICK).ended == "timeout"
    assert run_code("import time; time.sleep(60)", limits=QUICK).ended == "timeout"


FORK_BOMB = """
import os, time
born = 0
for _ in range(8):
    try:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        born += 1
    except OSError:
        pass
print("born", born)
"""


@pytest.mark.parametrize("watch", [True, pytest.param(False, marks=on_linux)])
def test_a_fork_bomb_bears_no_child(watch):
    assert run_code(FORK_BOMB, watch=watch).stdout == "born 0\n"


@on_linux
def test_threads_and_other_programs_cannot_be_started():
    code = "import threading\nthreading.Thread(target=print).start()"
    assert "can't start new thread" in run_code(code).stderr
    for watch in (True, False):
        code = "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo out'])"
        outcome = run_code(code, watch=watch)
        assert outcome.ended == "error" and outcome.stdout == ""
    assert run_code("import subprocess; subprocess.run(['ls', '/'])").ended == "error"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_what_a_program_leaves_running_is_killed_with_it(tmp_path):
    # The sandbox forbids children; the killing of the group is tried on one that has some.
    import subprocess

    from baize_lib.sandbox import _kill_group

    nest = "import subprocess, sys; c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", nest + "; c.wait()"], stdout=subprocess.PIPE, start_new_session=True
    )
    child = int(process.stdout.readline())
    _kill_group(process)
    with pytest.raises(ProcessLookupError):
        for _ in range(1000):
            os.kill(child, 0)
            threading.Event().wait(0.01)


def test_a_big_file_is_cut_at_the_limit(tmp_path):
    outcome = run_code("f = open('big', 'wb')\nwhile True: f.write(b'x' * 100_000)")
    assert outcome.ended in ("error", "killed")
    assert len(outcome.files["big"]) <= 1 << 20


def test_many_files_and_a_flood_of_output_are_stopped():
    many = run_code("for i in range(10**6): open(f'f{i}', 'w').write('x' * 1000)")
    assert many.ended == "error" and "does not allow" in many.stderr
    flood = run_code("while True: print('x' * 1000)")
    assert flood.ended in ("error", "killed") and len(flood.stdout) <= 64_000


@on_linux
def test_memory_is_limited():
    assert "MemoryError" in run_code("x = bytearray(2_000_000_000)").stderr


@pytest.mark.parametrize("watch", [True, pytest.param(False, marks=on_linux)])
def test_the_home_folder_cannot_be_read_listed_or_written(secret, watch):
    if not watch and "files (Landlock)" not in run_code("").guards:
        pytest.skip("this kernel has no Landlock")
    for attempt in (
        f"print(open({str(secret)!r}).read())",
        f"import os; print(os.listdir({str(secret.parent)!r}))",
        f"open({str(secret)!r}, 'w').write('gone')",
        f"import os; os.remove({str(secret)!r})",
        f"import os; os.symlink({str(secret)!r}, 's'); print(open('s').read())",
        "print(open('/proc/1/environ').read())",
    ):
        outcome = run_code(attempt, watch=watch)
        assert (outcome.ended, outcome.stdout) == ("error", ""), attempt
        assert "sk-secret" not in str(outcome.files)
    assert secret.read_text(encoding="utf-8") == "sk-secret"


def test_links_and_pipes_left_behind_are_not_followed(secret):
    code = f"import os; os.symlink({str(secret)!r}, 's'); os.mkfifo('p')"
    assert run_code(code, watch=False).files == {}


@pytest.mark.parametrize("watch", [True, pytest.param(False, marks=on_linux)])
def test_a_socket_reaches_nobody(server, watch):
    if not watch and "no network (namespace)" not in run_code("").guards:
        pytest.skip("this machine does not permit network namespaces")
    code = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{server.server_port}')"
    assert run_code(code, watch=watch).ended == "error"
    assert server.asked == 0
    exec(code)  # the same line outside the sandbox: the server was there to be reached
    assert server.asked == 1


def test_a_sandbox_that_cannot_start_says_so_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(BaizeError, match="nothing was run"):
        run_code("print(1)")


@on_linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root has it")
def test_root_does_not_lend_its_powers():
    code = "import os; print(os.getuid() != 0); os.setuid(0)"
    outcome = run_code(code, watch=False)
    assert "own user" in outcome.guards
    assert outcome.stdout == "True\n" and outcome.ended == "error"


def test_the_guards_in_force_are_named():
    guards = run_code("").guards
    assert guards[0] == "separate process, time limit" and guards[-1] == "audit hook"
