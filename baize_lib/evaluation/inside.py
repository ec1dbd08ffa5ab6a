"""The sandbox's other half: it locks its own process up, then runs the code (see `sandbox.py`).

It is started as a program of its own, by a Python without site-packages, so it imports nothing of
this library. Every guard returns its name when it is in force, and "" when this system lacks it.
Sources: landlock(7), seccomp(2), user_namespaces(7), PEP 578.
"""

import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

READ, WRITE, EXECUTE, LIST = 4, 2, 1, 8  # Landlock's rights to files
HIDDEN = "__main__"  # what the code's module is called, as in any program

# System calls a small program has no need of, by machine: sockets, processes, memory that can be
# run, and the ways to look into other processes or to raise one's own rights.
REFUSED_CALLS = {
    "x86_64": (0xC000003E, """
        socket 41 connect 42 bind 49 socketpair 53 clone 56 fork 57 vfork 58 execve 59 kill 62
        semget 64 msgget 68 shmget 29 ptrace 101 mount 165 add_key 248 request_key 249 keyctl 250
        unshare 272 perf_event_open 298 open_by_handle_at 304 setns 308 process_vm_readv 310
        process_vm_writev 311 memfd_create 319 bpf 321 execveat 322 userfaultfd 323
        io_uring_setup 425 pidfd_send_signal 424 clone3 435 pidfd_getfd 438"""),
    "aarch64": (0xC00000B7, """
        socket 198 connect 203 bind 200 socketpair 199 clone 220 execve 221 kill 129 semget 190
        msgget 186 shmget 194 ptrace 117 mount 40 add_key 217 request_key 218 keyctl 219 unshare 97
        perf_event_open 241 open_by_handle_at 265 setns 268 process_vm_readv 270
        process_vm_writev 271 memfd_create 279 bpf 280 execveat 281 userfaultfd 282
        io_uring_setup 425 pidfd_send_signal 424 clone3 435 pidfd_getfd 438"""),
}  # fmt: skip


def main(desk: str) -> None:
    spec = json.loads(sys.stdin.buffer.readline())
    trial, folder = _load_trial() if spec["calls"] else {}, os.path.realpath(".")
    names = [f"{desk}/{name}" for name in ("out", "err", "report")]
    out, err, report = (os.open(name, os.O_CREAT | os.O_RDWR, 0o600) for name in names)
    libraries = [path for path in (*sys.path, f"{sys.base_prefix}/lib") if path]
    guards = ["separate process, time limit"]
    if sys.platform == "linux":
        guards += _linux_guards(folder, libraries, spec)
    for name, text in spec["files"].items():
        with open(name, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to load
            file.write(text)
    if os.name == "posix":
        guards += _set_limits(spec)
    if "hook" not in spec["without"]:
        import ctypes  # loaded first, so that the hook can refuse every later use of it

        del ctypes
        blind = BLIND if "files (Landlock)" in guards else (*BLIND, "_sqlite3")
        sys.addaudithook(_watcher(folder, libraries, blind, spec["num_writes"]))
        guards.append("audit hook")
    os.listdir(os.path.dirname(os.__file__))  # noqa: PTH120, PTH208 - Python's own can be read?
    os.write(1, json.dumps([name for name in guards if name]).encode() + b"\n")
    sys.stdin.buffer.read()  # the other half closes the pipe when it is ready
    for wanted, given in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(given, wanted)
        os.close(given)
    _run(spec, trial, report)


def _load_trial() -> dict[str, Any]:
    with open(__file__.replace("inside.py", "trial.py"), encoding="utf-8") as file:  # noqa: PTH123
        source = file.read()
    trial: dict[str, Any] = {"__name__": "trial"}
    exec(compile(source, "trial.py", "exec"), trial)
    return trial


def _run(spec: dict[str, Any], trial: dict[str, Any], report: int) -> None:
    """The code in a module of its own; then, where calls are due, the trial of what it defined."""
    sys.argv[:] = ["answer.py"]
    module, ours = ModuleType(HIDDEN), sys.modules[HIDDEN]
    sys.modules[HIDDEN] = module
    try:
        exec(compile(spec["code"], "answer.py", "exec"), module.__dict__)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    finally:
        if spec["calls"]:  # a function may be right though its example fails
            trial["report"](module.__dict__, spec["calls"], report)
    del ours


def _set_limits(spec: dict[str, Any]) -> list[str]:
    import resource

    megabyte, seconds = 1 << 20, max(1, int(spec["seconds"]))
    limits = {
        "RLIMIT_CPU": seconds, "RLIMIT_AS": spec["memory_mb"] * megabyte, "RLIMIT_NOFILE": 64,
        "RLIMIT_FSIZE": spec["file_mb"] * megabyte, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0,
    }  # fmt: skip
    if sys.platform == "darwin":
        del limits["RLIMIT_AS"]  # macOS does not enforce it
    for name, value in limits.items():
        # A second more before the kernel's own kill, so that it ends as what it is: out of time.
        most = value + 1 if name == "RLIMIT_CPU" else value
        resource.setrlimit(getattr(resource, name), (value, most))
    limited = "CPU, file size and process limits"
    return [limited] if sys.platform == "darwin" else [limited, "memory limit"]


# ---- Linux


def _linux_guards(folder: str, libraries: list[str], spec: dict[str, Any]) -> list[str]:
    """Everything the kernel offers this user, strictest last."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    keep_capabilities, die_with_parent, no_new_privileges = 8, 1, 38
    without = spec["without"]
    is_root = os.geteuid() == 0 and "user" not in without
    user = 200_000 + os.getpid() % 50_000 if is_root else os.getuid()
    guards = []
    if "namespaces" not in without:
        guards += _namespaces(libc, folder, is_root, user, spec["disk_mb"])
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    locked = "landlock" not in without and _landlock(libc, folder, libraries)
    guards.append("files (Landlock)" if locked else "")
    if is_root:  # an unused user of its own, so that its process limit is too
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
    libc.prctl(die_with_parent, 9, 0, 0, 0)
    if "seccomp" not in without and _seccomp(libc):
        guards.append("no sockets, no processes (seccomp)")
    return guards


def _namespaces(libc: Any, folder: str, is_root: bool, user: int, disk_mb: int) -> list[str]:
    """No network; and a small file system in memory as the folder, from which nothing is run."""
    new_mounts, new_user, new_network = 0x20000, 0x10000000, 0x40000000
    private, recursive, no_suid, no_devices, no_exec = 1 << 18, 1 << 14, 2, 4, 8
    ids = f"{os.getuid()} {os.getuid()} 1", f"{os.getgid()} {os.getgid()} 1"
    own = new_mounts if is_root else new_mounts | new_user
    if libc.unshare(own | new_network):
        return []
    if not is_root:
        try:
            for name, text in zip(("setgroups", "uid_map", "gid_map"), ("deny", *ids), strict=True):
                with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                    file.write(text)
        except OSError:
            return ["no network (namespace)"]
    options = f"size={disk_mb}m,nr_inodes=500,mode=700,uid={user}".encode()
    if libc.mount(b"none", b"/", None, private | recursive, None) or libc.mount(
        b"tmpfs", os.fsencode(folder), b"tmpfs", no_suid | no_devices | no_exec, options
    ):
        return ["no network (namespace)"]
    os.chdir(folder)
    return ["no network (namespace)", "total disk, nothing executable (tmpfs)"]


def _landlock(libc: Any, folder: str, libraries: list[str]) -> bool:
    """Deny every file but these, execution, TCP and signals to others."""
    create, add_rule, restrict = 444, 445, 446
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    tcp, others = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(create, struct.pack("QQQ", everything, tcp, others)[:size], size, 0)
    allowed = {folder: everything & ~EXECUTE, "/dev/null": READ | WRITE}
    for path in (*libraries, "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo"):
        allowed[path] = READ | LIST
    allowed |= dict.fromkeys(("/etc/ld.so.cache", "/dev/urandom"), READ)
    for path, rights in allowed.items():
        try:
            file = os.open(path, os.O_PATH)
        except OSError:
            continue
        libc.syscall(add_rule, ruleset, 1, struct.pack("=Qi", rights, file), 0)
        os.close(file)
    return libc.syscall(restrict, ruleset, 0) == 0


def _seccomp(libc: Any) -> bool:
    """Answer the refused calls with "not permitted", by a filter the kernel runs at each call."""
    import ctypes

    machine, calls = REFUSED_CALLS.get(os.uname().machine, (0, ""))
    if not machine or sys.maxsize < 2**32:
        return False
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # BPF's instructions
    permit, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    numbers = [int(word) for word in calls.split() if word.isdigit()]
    steps = [(load, 0, 0, 4), (equal, 1, 0, machine), (answer, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(equal, len(numbers) - i + 1, 0, number) for i, number in enumerate(numbers)]
    steps += [(at_least, 1, 0, 1 << 30), (answer, 0, 0, permit), (answer, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    set_seccomp, with_filter = 22, 2
    return libc.prctl(set_seccomp, with_filter, program, 0, 0) == 0


# ---- The audit hook, everywhere

REFUSED_EVENTS = (
    "socket.", "ctypes.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn",
    "os.system", "os.startfile", "os.kill", "pty.", "winreg.", "sys.addaudithook",
    "sqlite3.enable_load_extension", "sqlite3.load_extension",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "os.chdir", "os.setxattr", "shutil.",
)  # fmt: skip
BLIND = ("readline", "_posixshmem", "_gdbm", "_dbm")  # they open files without telling the hook
NATIVE = (".so", ".dylib", ".pyd", ".dll")


def _watcher(
    folder: str, libraries: list[str], blind: tuple[str, ...], num_writes: int
) -> Callable[..., None]:
    """An audit hook that refuses what a small program has no need of."""
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
        allowed = not event.startswith(REFUSED_EVENTS)
        if event == "open":
            changes = bool((arguments[2] or 0) & writing)
            allowed = inside(arguments[0], writable if changes else readable)
            writes[0] += changes
        elif event in ("os.listdir", "os.scandir"):
            allowed = inside("." if arguments[0] is None else arguments[0], readable)
        elif event == "import":
            native = arguments[1] and str(arguments[1]).endswith(NATIVE)
            allowed = arguments[0] not in blind and not (native and inside(arguments[1], writable))
        elif event == "sqlite3.connect":
            path = fsdecode(arguments[0])
            writes[0] += 1
            allowed = path == ":memory:" or (path[:5] != "file:" and inside(path, writable))
        elif event.startswith(CHANGES):
            writes[0] += 1
            allowed = all(inside(path, writable) for path in arguments)
        if not allowed or writes[0] > num_writes:
            raise PermissionError(f"the sandbox does not allow {event} {arguments[:1]}")

    return watch


if __name__ == "__main__":
    main(sys.argv[1])
