"""The sandbox's other half: it locks its own process up, then runs the code (see `sandbox.py`).

It is started as a program of its own, by a Python without site-packages, so it imports nothing of
this library. What it refuses is listed in `refused.json`. Sources: landlock(7), seccomp(2),
user_namespaces(7), PEP 578.
"""

import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MEMORY_MB, FILE_MB, DISK_MB, NUM_WRITES = 512, 1, 16, 100  # what a program may use


def main(desk: str) -> None:
    spec, refused = json.loads(sys.stdin.buffer.readline()), json.loads(_beside("refused.json"))
    trial: dict[str, Any] = {"__name__": "trial"}
    if spec["calls"]:
        exec(compile(_beside("trial.py"), "trial.py", "exec"), trial)
    new = os.O_CREAT | os.O_RDWR
    out, err, report = (os.open(f"{desk}/{name}", new, 0o600) for name in ("out", "err", "report"))
    folder = os.path.realpath(".")
    libraries = [path for path in (*sys.path, f"{sys.base_prefix}/lib") if path]
    guards = ["separate process, time limit"]
    if sys.platform == "linux":
        guards += _linux_guards(folder, libraries, spec["without"], refused["calls"])
    for name, text in spec["files"].items():
        with open(name, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to load
            file.write(text)
    if os.name == "posix":
        guards += _set_limits(spec["seconds"])
    if "hook" not in spec["without"]:
        import ctypes  # loaded first, so that the hook can refuse every later use of it

        del ctypes
        if "files (Landlock)" not in guards:
            refused["blind"].append("_sqlite3")  # its ATTACH opens files without telling the hook
        sys.addaudithook(_watcher(folder, libraries, refused))
        guards.append("audit hook")
    os.listdir(os.path.dirname(os.__file__))  # noqa: PTH120, PTH208 - Python's own can be read?
    os.write(1, json.dumps([name for name in guards if name]).encode() + b"\n")
    sys.stdin.buffer.read()  # the other half closes the pipe when it is ready
    for wanted, given in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(given, wanted)
        os.close(given)
    _run(spec, trial, report)


def _beside(name: str) -> str:
    with open(__file__.replace("inside.py", name), encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


def _run(spec: dict[str, Any], trial: dict[str, Any], report: int) -> None:
    """The code in a module of its own; then, where calls are due, the trial of what it defined."""
    sys.argv[:] = ["answer.py"]
    ours, module = sys.modules["__main__"], ModuleType("__main__")  # ours must outlive its name
    sys.modules["__main__"] = module
    try:
        exec(compile(spec["code"], "answer.py", "exec"), module.__dict__)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    finally:
        if spec["calls"]:  # a function may be right though its example fails
            trial["report"](module.__dict__, spec["calls"], report)
    del ours


def _set_limits(seconds: float) -> list[str]:
    import resource

    cpu = max(1, int(seconds))  # one more before the kernel's kill: it ends as out of time
    limits = {"CPU": (cpu, cpu + 1), "FSIZE": (FILE_MB << 20,) * 2, "NOFILE": (64, 64)}
    limits |= {"CORE": (0, 0), "NPROC": (0, 0)}
    if sys.platform != "darwin":  # macOS does not enforce it
        limits["AS"] = (MEMORY_MB << 20,) * 2
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), most)
    return ["CPU, file size and process limits", "memory limit" if "AS" in limits else ""]


# ---- Linux


def _linux_guards(
    folder: str, libraries: list[str], without: list[str], calls: dict[str, Any]
) -> list[str]:
    """Everything the kernel offers this user, strictest last; "" for what it lacks."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    keep_capabilities, die_with_parent, no_new_privileges = 8, 1, 38
    is_root = os.geteuid() == 0 and "user" not in without
    user = 200_000 + os.getpid() % 50_000 if is_root else os.getuid()
    guards = [] if "namespaces" in without else _namespaces(libc, folder, is_root, user)
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
    closed = "seccomp" not in without and _seccomp(libc, *calls.get(os.uname().machine, (0, {})))
    return [*guards, "no sockets, no processes (seccomp)" if closed else ""]


def _namespaces(libc: Any, folder: str, is_root: bool, user: int) -> list[str]:
    """No network; and a small file system in memory as the folder, from which nothing is run."""
    new_mounts, new_user, new_network = 0x20000, 0x10000000, 0x40000000
    private, recursive, no_suid, no_devices, no_exec = 1 << 18, 1 << 14, 2, 4, 8
    uid, gid = os.getuid(), os.getgid()
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    if libc.unshare(new_network | new_mounts | (0 if is_root else new_user)):
        return []
    network = "no network (namespace)"
    if not is_root:
        try:
            for name, text in maps.items():
                with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                    file.write(text)
        except OSError:
            return [network]
    options = f"size={DISK_MB}m,nr_inodes=500,mode=700,uid={user}".encode()
    if libc.mount(b"none", b"/", None, private | recursive, None) or libc.mount(
        b"tmpfs", os.fsencode(folder), b"tmpfs", no_suid | no_devices | no_exec, options
    ):
        return [network]
    os.chdir(folder)
    return [network, "total disk, nothing executable (tmpfs)"]


def _landlock(libc: Any, folder: str, libraries: list[str]) -> bool:
    """Deny every file but these, execution, TCP and signals to others."""
    create, add_rule, restrict = 444, 445, 446
    execute, write_file, read_file, read_folder = 1, 2, 4, 8
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    tcp, others = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(create, struct.pack("QQQ", everything, tcp, others)[:size], size, 0)
    allowed = {folder: everything & ~execute, "/dev/null": read_file | write_file}
    system = ("/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo")
    allowed |= dict.fromkeys((*libraries, *system), read_file | read_folder)
    allowed |= dict.fromkeys(("/etc/ld.so.cache", "/dev/urandom"), read_file)
    for path, rights in allowed.items():
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_PATH)
            libc.syscall(add_rule, ruleset, 1, struct.pack("=Qi", rights, file), 0)
            os.close(file)
    return libc.syscall(restrict, ruleset, 0) == 0


def _seccomp(libc: Any, machine: int, calls: dict[str, int]) -> bool:
    """Answer the refused calls with "not permitted", by a filter the kernel runs at each call."""
    import ctypes

    if not machine or sys.maxsize < 2**32:
        return False
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # BPF's instructions
    permit, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    steps = [(load, 0, 0, 4), (equal, 1, 0, machine), (answer, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(equal, len(calls) - i + 1, 0, number) for i, number in enumerate(calls.values())]
    steps += [(at_least, 1, 0, 1 << 30), (answer, 0, 0, permit), (answer, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    set_seccomp, with_filter = 22, 2
    return libc.prctl(set_seccomp, with_filter, program, 0, 0) == 0


# ---- Everywhere


def _watcher(folder: str, libraries: list[str], refused: dict[str, Any]) -> Callable[..., None]:
    """An audit hook that refuses what a small program has no need of."""
    real, fsdecode = os.path.realpath, os.fsdecode
    readable = (*(real(path) + os.sep for path in [folder, *libraries]), os.devnull)
    writable, writes = (real(folder) + os.sep, os.devnull), [0]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    events, changes = tuple(refused["events"]), tuple(refused["changes"])

    def inside(path: Any, roots: tuple[str, ...]) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open file, or no path at all
        full = real(fsdecode(path))
        return full in roots or (full + os.sep).startswith(roots)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        allowed = not event.startswith(events)
        if event == "open":
            to_write = bool((arguments[2] or 0) & writing)
            allowed = inside(arguments[0], writable if to_write else readable)
            writes[0] += to_write
        elif event in ("os.listdir", "os.scandir"):
            allowed = inside("." if arguments[0] is None else arguments[0], readable)
        elif event == "import":
            own = str(arguments[1]).endswith((".so", ".dylib", ".pyd", ".dll"))
            own = own and inside(arguments[1], writable)
            allowed = arguments[0] not in refused["blind"] and not own
        elif event == "sqlite3.connect":
            path = fsdecode(arguments[0])
            writes[0] += 1
            allowed = path == ":memory:" or (path[:5] != "file:" and inside(path, writable))
        elif event.startswith(changes):
            writes[0] += 1
            allowed = all(inside(path, writable) for path in arguments)
        if not allowed or writes[0] > NUM_WRITES:
            raise PermissionError(f"the sandbox does not allow {event} {arguments[:1]}")

    return watch


if __name__ == "__main__":
    main(sys.argv[1])
