"""Makes a stand-in for the base image where none can be pulled: this Debian's base packages and CPython, as one tar file."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGES = """
base-files base-passwd bash ca-certificates coreutils dash debconf debianutils findutils grep gzip hostname login mawk
netbase openssl passwd sed tar tzdata util-linux perl-base libacl1 libattr1 libaudit1 libblkid1 libbz2-1.0 libc-bin
libc6 libcap-ng0 libcap2 libcrypt1 libdb5.3 libexpat1 libffi8 libgcc-s1 libgmp10 liblzma5 libmount1 libncursesw6 libpam-
modules libpam-runtime libpam0g libpcre2-8-0 libreadline8 libselinux1 libsemanage2 libsepol2 libsmartcols1 libsqlite3-0
libssl3 libstdc++6 libsystemd0 libtinfo6 libudev1 libuuid1 libzstd1 zlib1g
""".split()  # noqa: SIM905 (a list of one word a line would be sixty lines)
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/ssl/certs/ca-certificates.crt": "",  # where a build mounts its own
}
SKIPPED = ("site-packages", "test", "__pycache__", "config-3", "idlelib", "tkinter", "turtledemo", "lib2to3")


def write_base(archive: Path) -> None:
    """Writes the tar file; needs Debian with merged /usr, and CPython 3.11 with pip in its `ensurepip`."""
    listed = subprocess.run(["dpkg", "-L", *PACKAGES], capture_output=True, text=True, check=False).stdout.splitlines()
    names = {_merged(line) for line in listed if line.startswith("/")} - {"", ".", "tmp", *LINKS, *FILES}
    with tarfile.open(archive, "w") as tar:
        for name, target in LINKS.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name in sorted(names):
            if Path("/", name).exists() and not name.startswith(("usr/share/doc", "usr/share/man", "usr/share/locale")):
                tar.add(Path("/", name), name, recursive=False, filter=_timeless)
        for name, text in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
        tmp = tarfile.TarInfo("tmp")
        tmp.type, tmp.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(tmp)
        _add_python(tar)


def _merged(line: str) -> str:
    first, _, rest = line.strip("/").partition("/")
    return f"{LINKS[first]}/{rest}" if rest and first in LINKS else line.strip("/")


def _add_python(tar: tarfile.TarFile) -> None:
    prefix = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    tar.add(prefix / "bin" / version, f"usr/local/bin/{version}")
    for name in ("python", "python3"):
        link = tarfile.TarInfo(f"usr/local/bin/{name}")
        link.type, link.linkname = tarfile.SYMTYPE, version
        tar.addfile(link)
    for library in (prefix / "lib").glob("libpython3*.so*"):
        tar.add(library, f"usr/lib/{library.name}")
    tar.add(prefix / "lib" / version, f"usr/local/lib/{version}", filter=_kept)


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name.startswith(SKIPPED) else _timeless(entry)


def _timeless(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """A folder's time is when something was last put into it: podman itself works in /var/tmp, and every base was another."""
    entry.mtime = 0 if entry.isdir() else entry.mtime
    return entry


if __name__ == "__main__":
    write_base(Path(sys.argv[1]))
