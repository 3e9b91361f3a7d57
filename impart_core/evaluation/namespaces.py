"""Linux calls that take a process's rights away: namespaces, mounts, capabilities, limits.

Python 3.11 has none of them, so that they go through the C library. All take effect in the calling process, which has
to be a fresh fork with one thread.
"""

import contextlib
import ctypes
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path

NOBODY = 65534
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
ALL_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
_SYS_MOUNT_SETATTR, _AT_RECURSIVE = 442, 0x8000  # the number is the same on all but one architecture (Alpha)
_READ_ONLY, _NO_SET_UID = 1, 2
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_KEYCTL = {"x86_64": 250, "aarch64": 219}  # number of the call by machine
_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library.

    Raises:
        OSError: it returned an error.
    """
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter_namespaces() -> None:
    """Move into new user, mount, process, network, IPC and UTS namespaces; the next fork is process 1 there.

    The namespace knows the caller's user and group alone; root's also `nobody`, which it can then become.

    Raises:
        OSError: the kernel does not allow it.
    """
    ready, go = os.pipe()
    target, ids = os.getpid(), (os.geteuid(), os.getegid())
    helper = os.fork()  # a process outside of the new namespaces has to write what its ids stand for
    if helper == 0:
        try:
            os.close(go)
            os._exit(0 if os.read(ready, 1) and _write_ids(target, *ids) else 1)
        finally:
            os._exit(1)
    os.close(ready)
    try:
        _call("unshare", ALL_NAMESPACES)
        os.write(go, b".")
    finally:
        os.close(go)
        _, status = os.waitpid(helper, 0)
    if status:
        raise OSError(1, "the ids of a user namespace cannot be written")


def _write_ids(process: int, user: int, group: int) -> bool:
    folder = Path(f"/proc/{process}")
    if user:
        (folder / "setgroups").write_text("deny")
    for name, own in (("gid_map", group), ("uid_map", user)):
        itself = f"{own} {own} 1"
        try:
            (folder / name).write_text(itself if user else f"{itself}\n{NOBODY} {NOBODY} 1")
        except PermissionError:  # root of a container that knows no other user, and is an ordinary user outside of it
            (folder / name).write_text(itself)
    return True


def build_root(root: Path, visible: Sequence[Path], work: Path, size: int) -> None:
    """Make `root` the root of all files: what is visible, read-only, and one empty folder that can be written.

    Args:
        root: an empty folder.
        visible: files and folders that are to be there; those that do not exist are left out.
        work: the folder that can be written, at its own path; folders in it are made anew, files are not there.
        size: bytes that it and shared memory may hold, each.
    """
    folders = [Path(place) / name for place, names, _ in os.walk(work) for name in names]
    _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    _mount_memory(root, 16 * 2**20)
    devices = [Path("/dev") / name for name in ("null", "zero", "random", "urandom")]
    for place in [*visible, *devices]:
        _show(root, place)
    inside, shared = _under(root, work), root / "dev/shm"
    for folder in (inside, shared):
        folder.mkdir(parents=True, exist_ok=True)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SET_UID, 0, 0, 0)
    path = ctypes.c_char_p(bytes(root))
    _call("syscall", _SYS_MOUNT_SETATTR, -1, path, _AT_RECURSIVE, ctypes.byref(attributes), ctypes.c_size_t(32))
    for folder in (inside, shared):
        _mount_memory(folder, size)
    for folder in folders:
        _under(root, folder).mkdir()
        _under(root, folder).chmod(0o777)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir(work)


def _under(root: Path, place: Path) -> Path:
    return root / place.relative_to("/")


def _mount_memory(folder: Path, size: int) -> None:
    _call("mount", b"tmpfs", bytes(folder), b"tmpfs", 0, f"mode=1777,size={size}".encode())


def _show(root: Path, place: Path) -> None:
    target = _under(root, place)
    if not os.path.exists(place) or target.exists():  # noqa: PTH110 - Path.exists() raises where it may not look
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        target.symlink_to(place.readlink())
        return
    if place.is_dir():
        target.mkdir()
    else:
        target.touch()
    _call("mount", bytes(place), bytes(target), None, _MS_BIND | _MS_REC, None)


def forbid_namespaces() -> None:
    """Allow no user namespaces inside of this one: they have no rights outside, but open more of the kernel."""
    with contextlib.suppress(OSError):  # /proc is read-only in some containers
        Path("/proc/sys/user/max_user_namespaces").write_text("0")


def drop_rights(limits: dict[int, int]) -> None:
    """Give up root, all capabilities and all ways to get them back, and set hard limits.

    Args:
        limits: values by their number in `resource`.
    """
    for which, value in limits.items():
        _, hard = resource.getrlimit(which)
        low = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (low, low))
    if platform.machine() in _KEYCTL:  # an empty keyring instead of the user's, which may hold tickets
        _libc.syscall(_KEYCTL[platform.machine()], _JOIN_SESSION_KEYRING, None)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # past the last one that this kernel has
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # see `_write_ids`
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
