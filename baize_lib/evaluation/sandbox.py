"""Run code a model wrote, without trusting it.

A check that only reads code is easily fooled; one that runs it must survive what it runs. The code
gets a process, a folder and an environment of its own, and limits it cannot raise.

    run_code("print(6 * 7)").stdout              -> "42\\n"
    run_code("while True: pass").ended           -> "timeout"
    run_code("open('/etc/passwd')").ended        -> "error"

What holds, and where (`Outcome.guards` lists what was in force for that run):

- **Everywhere**: a separate Python without site-packages; an empty environment; a time limit, after
  which the whole process group is killed; and an audit hook that refuses sockets, other processes,
  ctypes, and files outside the folder. The hook stops a model's blunders, not an attacker: code
  written to break out of Python itself can get round it.
- **Linux and macOS**: limits on CPU time, size of a file, open files, and on starting processes or
  threads. macOS does not enforce the memory limit.
- **Linux**: a memory limit; where the kernel permits it, a network namespace with no network, and
  Landlock: only the folder can be written, only it and Python's own libraries read, nothing
  executed. A root user's code runs under an unused user id.
- **Windows**: no limits but time, and only the audit hook guards files and network.

Not covered: file names and sizes outside the folder can be seen (`os.stat`), and a fault in the
kernel is a way out. For code from people you do not trust, use a virtual machine.
"""

import contextlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Limits",
    "Outcome",
    "run_code",
]


_MAX_OUTPUT = 64_000  # characters of stdout, stderr and of each file that come back


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use: wall-clock and CPU seconds, memory and file size in megabytes."""

    seconds: float = 5
    memory_mb: int = 512
    file_mb: int = 1
    num_writes: int = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: "ok", "error" (an exception or exit code), "timeout" or "killed".

    `files` are the texts it left in its folder, by name; `guards` the protections in force.
    """

    ended: str
    stdout: str
    stderr: str
    files: dict[str, str]
    guards: tuple[str, ...]


def run_code(
    code: str,
    *,
    files: Mapping[str, str] | None = None,
    then: str = "",
    limits: Limits | None = None,
    without: str = "",
) -> Outcome:
    """Run Python `code` in a folder holding `files`, then `then` in the same namespace.

    Args:
        then: our own code, run after a program that ended well, to look at what it defined.
        without: "hook" or "kernel" leaves out the audit hook, or what only Linux's kernel does, so
            that the tests can try the other one alone.

    Raises:
        BaizeError: the sandbox itself could not be set up; the code was not run.
    """
    limits = limits or Limits()
    spec = {"code": code, "then": then, "without": without, **asdict(limits)}
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        for name, text in (files or {}).items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        ended, stdout, stderr = _spawn(spec, folder, limits.seconds)
        guards, _, stdout = stdout.partition("\n")
        if ended != "timeout" and not guards.startswith("["):
            from baize_lib.config import BaizeError

            raise BaizeError(
                f"the sandbox could not start, so nothing was run ({stderr.strip()[-300:]}): "
                "use a Python that other users can read, or skip the code checks"
            )
        stdout, stderr = stdout[:_MAX_OUTPUT], stderr[-_MAX_OUTPUT:]
        in_force = tuple(json.loads(guards or "[]"))
        return Outcome(ended, stdout, stderr, dict(_texts_in(folder)), in_force)


def _spawn(spec: dict[str, Any], folder: str, seconds: float) -> tuple[str, str, str]:
    """How it ended, stdout and stderr. They are files, whose size is limited, and no pipes, which
    a flood could fill."""
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(Path(__file__).resolve())]
    windows = {"SYSTEMROOT": os.environ["SYSTEMROOT"]} if sys.platform == "win32" else {}
    with contextlib.ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(json.dumps(spec).encode())
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=out, stderr=err, cwd=folder, env=windows,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
        for file in (out, err):
            file.seek(0)
        texts = (file.read(2_000_000).decode("utf-8", "replace") for file in (out, err))
        return _ended(code), *texts


def _kill_group(process: subprocess.Popen) -> None:
    """Kill the program and whatever it may have started, also when it ended by itself."""
    if hasattr(os, "killpg"):
        # Nobody may be left (macOS then says "not permitted").
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _ended(code: int | None) -> str:
    if code is None or code == -getattr(signal, "SIGXCPU", 0):
        return "timeout"
    return "ok" if code == 0 else "killed" if code < 0 else "error"


def _texts_in(folder: str) -> Iterator[tuple[str, str]]:
    """Plain files at the top of the folder; links and pipes a program may have left are skipped,
    and so is what it made unreadable."""
    with contextlib.suppress(OSError):
        Path(folder).chmod(0o700)
        for entry in sorted(os.scandir(folder), key=lambda e: e.name)[:50]:
            if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                name = os.fsencode(entry.name).decode("utf-8", "replace")
                with contextlib.suppress(OSError), Path(entry.path).open("rb") as file:
                    yield name, file.read(_MAX_OUTPUT).decode("utf-8", "replace")


# ---- The other half: what follows runs inside the new process, before and around the code.


def _inside() -> None:
    spec = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # `then` may hold the results that are expected
    folder = str(Path.cwd().resolve())
    libraries = [path for path in (*sys.path[1:], f"{sys.base_prefix}/lib") if path]
    guards = ["separate process, time limit"]
    if sys.platform == "linux" and spec["without"] != "kernel":
        guards += _linux_guards(folder, libraries)
    if os.name == "posix":
        guards += _set_limits(spec)
    if spec["without"] != "hook":
        import ctypes  # loaded first, so that the hook can refuse every later use of it

        del ctypes
        sys.addaudithook(_watcher(folder, libraries, spec["num_writes"]))
        guards.append("audit hook")
    next(Path(os.__file__).parent.iterdir())  # fail now if Python's own files cannot be read
    print(json.dumps(guards), flush=True)
    sys.argv[:] = ["answer.py"]
    sys.path[:] = sys.path[1:]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for name in ("code", "then"):
        try:
            exec(compile(spec[name], f"{name}.py", "exec"), namespace)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise


def _set_limits(spec: dict[str, Any]) -> list[str]:
    import resource

    megabyte = 1 << 20
    seconds = max(1, int(spec["seconds"]))
    for name, value in {
        "RLIMIT_CPU": seconds, "RLIMIT_AS": spec["memory_mb"] * megabyte, "RLIMIT_NOFILE": 64,
        "RLIMIT_FSIZE": spec["file_mb"] * megabyte, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0,
    }.items():  # fmt: skip
        if name == "RLIMIT_AS" and sys.platform == "darwin":
            continue
        # A second more before the kernel's own kill, so that it ends as what it is: out of time.
        most = value + 1 if name == "RLIMIT_CPU" else value
        resource.setrlimit(getattr(resource, name), (value, most))
    limited = ["CPU, file size and process limits"]
    return limited if sys.platform == "darwin" else [*limited, "memory limit"]


def _linux_guards(folder: str, libraries: list[str]) -> list[str]:
    """No network, no other files, no root: each where this kernel and user are allowed to."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_network = 0x10000000, 0x40000000
    die_with_parent, keep_capabilities, no_new_privileges = 1, 8, 38
    guards = []
    is_root = os.geteuid() == 0
    if libc.unshare(new_network if is_root else new_user | new_network) == 0:
        guards.append("no network (namespace)")
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    locked = _landlock(libc, folder, libraries)
    if locked:
        guards.append("files (Landlock)")
    if is_root:
        user = 200_000 + os.getpid() % 50_000  # of its own, so that its process limit is too
        libc.prctl(keep_capabilities, 1, 0, 0, 0)
        with contextlib.suppress(OSError):
            os.chown(folder, user, user)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            guards.append("own user")
    # Python may be installed under /root: with Landlock in force, reading it can be allowed.
    read_any = 1 << 2 if is_root and locked else 0
    libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", read_any, read_any, *[0] * 4))
    libc.prctl(die_with_parent, signal.SIGKILL, 0, 0, 0)
    return guards


def _landlock(libc: Any, folder: str, libraries: list[str]) -> bool:
    """Deny every file but these, execution, TCP and signals to others. See landlock(7)."""
    create, add_rule, restrict = 444, 445, 446
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    execute, write_file, read_file, read_folder = 1, 2, 4, 8
    tcp, others = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(create, struct.pack("QQQ", everything, tcp, others)[:size], size, 0)
    allowed = {folder: everything & ~execute, "/dev/null": read_file | write_file}
    for path in (*libraries, "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo"):
        allowed[path] = read_file | read_folder
    for path in ("/etc/ld.so.cache", "/dev/urandom"):
        allowed[path] = read_file
    for path, rights in allowed.items():
        if Path(path).exists():
            file = os.open(path, os.O_PATH)
            libc.syscall(add_rule, ruleset, 1, struct.pack("=Qi", rights, file), 0)
            os.close(file)
    return libc.syscall(restrict, ruleset, 0) == 0


_REFUSED = (
    "socket.", "ctypes.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn",
    "os.system", "os.startfile", "os.kill", "pty.", "winreg.", "sys.addaudithook",
    "sqlite3.enable_load_extension", "sqlite3.load_extension",
)  # fmt: skip
_CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "os.chdir", "os.setxattr", "shutil.",
)  # fmt: skip


_BLIND = ("readline", "_posixshmem", "_gdbm", "_dbm")  # they open files without telling the hook


def _watcher(folder: str, libraries: list[str], num_writes: int) -> Callable[..., None]:
    """An audit hook (PEP 578) that refuses what a small program has no need of."""
    real, fsdecode = os.path.realpath, os.fsdecode
    readable = (*(real(path) + os.sep for path in [folder, *libraries]), os.devnull)
    writable, writes = (real(folder) + os.sep, os.devnull), [0]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def inside(path: Any, roots: tuple[str, ...]) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open file, or no path at all
        full = real(fsdecode(path))
        return full in roots or (full + os.sep).startswith(roots)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        allowed = not event.startswith(_REFUSED)
        if event == "open":
            changes = bool((arguments[2] or 0) & writing)
            allowed = inside(arguments[0], writable if changes else readable)
            writes[0] += changes
        elif event in ("os.listdir", "os.scandir"):
            allowed = inside("." if arguments[0] is None else arguments[0], readable)
        elif event == "import":
            allowed = arguments[0] not in _BLIND
        elif event == "sqlite3.connect":
            path = fsdecode(arguments[0])
            allowed = path == ":memory:" or (path[:5] != "file:" and inside(path, writable))
        elif event.startswith(_CHANGES):
            writes[0] += 1
            allowed = all(inside(path, writable) for path in arguments)
        if not allowed or writes[0] > num_writes:
            raise PermissionError(f"the sandbox does not allow {event} {arguments[:1]}")

    return watch


if __name__ == "__main__":
    _inside()
