"""Where a folder lies: which file system, how much room, and whether it can be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_REMOTE = ("nfs", "cifs", "smb", "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "9p", "afs", "ceph", "glusterfs")


def nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def is_remote(folder: Path) -> bool:
    """Tell whether a folder lies on a network share, as far as the kernel's table of mounts says."""
    return _file_system(nearest(folder)).startswith(_REMOTE)


def free_bytes(folder: Path) -> int:
    """Return the bytes this account may still write there."""
    found = os.statvfs(nearest(folder))
    return found.f_bavail * found.f_frsize


def why_not_writable(folder: Path) -> str:
    """Return why no file can be made in a folder, or where it would be made; empty if one can."""
    there = nearest(folder)
    if not there.is_dir():
        return f"{there.name} is a file, not a folder"
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".fedcxr-doctor-") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _file_system(folder: Path) -> str:
    path = str(folder.resolve())
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        parts = line.split(" ")
        point = parts[1].replace("\\040", " ") if len(parts) > 2 else ""
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if point and inside and len(point) >= len(best):
            best, kind = point, parts[2]
    return kind
