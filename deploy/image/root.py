"""A root file system that holds Python, the libraries it needs, and no distribution.

    python3 root.py /image /opt/venv

Every shared library that Python or the packages of the virtual environment link against comes
from this machine's distribution, with the record of its package, which scanners of images read.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

USER = 10001
HOME = "var/lib/ponder"
PASSWD = "root:x:0:0:root:/root:/sbin/nologin\nponder:x:{0}:{0}:ponder:/{1}:/sbin/nologin\n"
GROUP = "root:x:0:\nponder:x:{0}:\n"
NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
COPIED = (
    *("etc/ssl/certs/ca-certificates.crt", "etc/os-release", "etc/ld.so.conf"),
    "usr/share/zoneinfo/UTC",  # without which pyarrow reads no time
)
# Of Python's own library: what installs, draws or edits.
UNUSED = (
    *("__pycache__", "site-packages", "dist-packages", "ensurepip", "idlelib", "lib2to3", "test"),
    *("tkinter", "turtledemo", "turtle.py", "pydoc_data", "distutils", "config-*", "venv"),
    *("_tkinter*.so", "_curses*.so", "readline*.so", "nis*.so", "_test*.so", "_xxtest*.so"),
    *("_gdbm*.so", "_dbm*.so", "xx*.so", "_ctypes_test*.so"),
)
ELF = b"\x7fELF"


def main(root: Path, venv: Path) -> None:
    for merged in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / merged).mkdir(parents=True)
        (root / merged).symlink_to(f"usr/{merged}")
    python(root)
    needed = sorted({path for start in (root, venv) for path in closure(start)})
    for path in needed:
        copy(path, root)
    files(root)
    for path in needed:
        package_record(path, root)
    subprocess.run(["ldconfig", "-r", root], check=True)


def python(root: Path) -> None:
    """The interpreter, under every name that a virtual environment may call it, and its library."""
    interpreter = Path(sys.executable).resolve()
    copy(interpreter, root)
    for name in ("python3", "python"):
        link = root / interpreter.parent.relative_to("/") / name
        link.symlink_to(interpreter.name)
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, in_root(library, root), ignore=shutil.ignore_patterns(*UNUSED))


def closure(folder: Path) -> Iterator[Path]:
    """What the programs and libraries in a folder link against, outside of it."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file() or not is_elf(path):
            continue
        told = subprocess.run(["ldd", path], check=False, capture_output=True, text=True).stdout
        if "not found" in told:
            sys.exit(f"{path} links against what is not there:\n{told}")
        for name in re.findall(r"(/\S+) \(0x", told):
            if not Path(name).is_relative_to(folder):
                yield Path(name)


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == ELF


def in_root(path: Path, root: Path) -> Path:
    return root / path.relative_to("/")


def copy(path: Path, root: Path) -> None:
    """A file under its own name, and those of the links to it by the way."""
    target = in_root(path, root)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(path, target)


def package_record(path: Path, root: Path) -> None:
    """As images without a package manager keep it: a file a package in status.d."""
    for name in (str(path.resolve()), str(path.resolve()).removeprefix("/usr"), str(path)):
        owner = subprocess.run(["dpkg", "-S", name], check=False, capture_output=True, text=True)
        if owner.returncode == 0:
            break
    else:
        return  # not a package's: Python's own library, where it was built apart
    package = owner.stdout.partition(":")[0]
    folder = root / "var/lib/dpkg/status.d"
    folder.mkdir(parents=True, exist_ok=True)
    record = subprocess.run(["dpkg", "-s", package], check=True, capture_output=True, text=True)
    (folder / package).write_text(record.stdout)


def files(root: Path) -> None:
    for name in COPIED:
        copy(Path("/", name), root)
    shutil.copytree("/etc/ld.so.conf.d", root / "etc/ld.so.conf.d")
    (root / "etc/passwd").write_text(PASSWD.format(USER, HOME))
    (root / "etc/group").write_text(GROUP.format(USER))
    (root / "etc/nsswitch.conf").write_text(NSSWITCH)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    home = root / HOME
    home.mkdir(parents=True)
    shutil.chown(home, USER, USER)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
