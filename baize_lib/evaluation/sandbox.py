"""Run code a model wrote, without trusting it.

The code gets a process, a folder and an environment of its own, and limits it cannot raise:

    run_code("print(6 * 7)").stdout                            -> "42\\n"
    run_code("while True: pass").ended                         -> "timeout"
    run_code("def f(n): return 2 * n", calls=[{"args": [3]}])  -> its .report says that f gave 6

`Outcome.guards` lists what was in force for that run; notebook 05 shows what holds on which system.
With Landlock and namespaces, Linux's kernel closes everything known: files elsewhere, all disk
together, network, Unix sockets, processes, memory. An older Linux keeps seccomp and limits; macOS
only limits; Windows only time. What the kernel does not close is left to Python's audit hook (PEP
578), which stops a model's blunders and not an attacker; SQLite is refused where its ATTACH could
not be held. Not covered anywhere: names and sizes of files elsewhere can be seen (`os.stat`), and a
fault in the kernel is a way out. For code from people you do not trust, use a virtual machine.
"""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError

__all__ = ["run_code"]

_MAX_OUTPUT = 64_000  # characters of stdout, stderr and of each file that come back


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: "ok", "error" (an exception or exit code), "timeout" or "killed"."""

    ended: str
    stdout: str
    stderr: str
    files: dict[str, str]  # the texts it left in its folder, by path ("data/out.json")
    # What `trial.py` saw when it made the calls, if it came so far. The program could have forged
    # it, so believe no verdict in it, only compare its results.
    report: str
    guards: tuple[str, ...]  # the protections in force


def run_code(
    code: str,
    *,
    files: Mapping[str, str] | None = None,
    calls: Sequence[Mapping[str, Any]] = (),
    seconds: float = 5,
    without: Sequence[str] = (),
) -> Outcome:
    """Run Python `code` in a folder holding `files`, then call the functions it defined.

    Args:
        calls: `{"args": [...], "files": {name: text}}` each, tried by `trial.py` on every function.
            The results that are expected stay here: they never enter the process.
        without: guards to leave out, for the tests: "hook", "landlock", "namespaces", "seccomp",
            "user" (root's code runs as an unused one).

    Raises:
        BaizeError: the sandbox itself could not be set up; the code was not run.
    """
    spec = {"code": code, "files": dict(files or {}), "calls": list(calls), "seconds": seconds}
    desk_of_ours = tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True)
    with (
        contextlib.suppress(RecursionError),  # a program may nest more folders than can be removed
        desk_of_ours as desk,
        contextlib.ExitStack() as at_end,
    ):
        folder, status = Path(desk, "folder"), None
        folder.mkdir()
        process = _start(desk)
        try:
            guards = _hand_over(process, spec | {"without": list(without)})
            with contextlib.suppress(OSError):  # on Linux its folder may be a disk of its own
                held = os.open(f"/proc/{process.pid}/cwd", os.O_RDONLY)
                at_end.callback(os.close, held)
                folder = Path(f"/proc/self/fd/{held}")
            process.stdin.close()  # only now does the code begin
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(seconds)
        finally:
            _kill_group(process)
        out, err, report = (_text_of(Path(desk, name)) for name in ("out", "err", "report"))
        shown = out[:_MAX_OUTPUT], err[-_MAX_OUTPUT:], dict(_texts_in(folder))
        outcome = Outcome(_ended(status), *shown, report, guards)
    return outcome


def _start(desk: str) -> subprocess.Popen:
    inside = Path(__file__).resolve().with_name("inside.py")
    windows = {"SYSTEMROOT": os.environ["SYSTEMROOT"]} if sys.platform == "win32" else {}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(inside), desk],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=Path(desk) / "folder", env=windows, start_new_session=True,
    )  # fmt: skip


def _hand_over(process: subprocess.Popen, spec: dict[str, Any]) -> tuple[str, ...]:
    """Tell the other half what to run; it answers with the guards in force and waits."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(spec).encode() + b"\n")
        process.stdin.flush()
    if not (line := process.stdout.readline()):
        said = process.stderr.read().decode("utf-8", "replace").strip()[-300:]
        raise BaizeError(
            f"the sandbox could not start, so nothing was run ({said}): "
            "use a Python that other users can read, or skip the code checks"
        )
    return tuple(json.loads(line))


def _kill_group(process: subprocess.Popen) -> None:
    """Kill the program and whatever it may have started, also when it ended by itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody may be left
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            pipe.close()


def _ended(code: int | None) -> str:
    if code is None or code == -getattr(signal, "SIGXCPU", 0):
        return "timeout"
    return "ok" if code == 0 else "killed" if code < 0 else "error"


def _text_of(path: Path) -> str:
    return path.read_bytes()[:2_000_000].decode("utf-8", "replace") if path.is_file() else ""


def _texts_in(folder: Path) -> Iterator[tuple[str, str]]:
    """At most 50 plain files of the folder, three levels deep; links and pipes a program may have
    left are skipped, and so is what it made unreadable."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        deep = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(folders)[:10] if deep < 3 else []
        found += [Path(root, name) for name in sorted(names)[: 50 - len(found)]]
    for path in found:
        name = os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")
        with contextlib.suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode):
                yield name, path.read_bytes()[:_MAX_OUTPUT].decode("utf-8", "replace")
