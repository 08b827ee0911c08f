"""Whether to read a configuration file that was found in the working directory, and not named.

It says where messages go, which plugins are loaded and which classes a pickle may name. A program may well be started in a
directory that others can write, ``/tmp`` for example. So the file, its directory and, where it is a symbolic link, the way
to its target must belong to the user of the process or to root, and no other user may have the right to change them. A file
that is named by ``PGQRS_CONFIG``, ``--config`` or an argument is read as it is.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

from pgqrs_core.errors import ConfigurationError
from pgqrs_core.pasting import shell_quoted

__all__ = ["read_found_file"]

_ROOT: Final = 0


def read_found_file(path: str) -> bytes:
    """Return the content of a file that was found in the working directory.

    Raises:
        ConfigurationError: another user owns it, or may change it.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        # The file that was opened is the one that is looked at, whatever is put in its place meanwhile.
        _check(path, "it", file.fileno())
        link, directory = os.lstat(path), os.path.dirname(os.path.abspath(path))
        _check(path, f"its directory {directory}", directory)
        if stat.S_ISLNK(link.st_mode):
            _check_owner(path, "the symbolic link", link)
            for above in Path(os.path.realpath(path)).parents:
                _check(path, f"the directory {above} of its target", above)
        return file.read()


def _check(path: str, what: str, place: int | str | os.PathLike[str]) -> None:
    found = os.stat(place)
    _check_owner(path, what, found)
    # In a sticky directory only its owner and the owner of a file may replace the file.
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return
    # What Kubernetes mounts may be written by everybody, were it not mounted for reading only.
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return
    if found.st_mode & stat.S_IWOTH:
        raise _refused(path, f"{what} can be written by every user")
    if found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid):
        raise _refused(path, f"{what} can be written by the members of group {_group(found.st_gid)}")


def _check_owner(path: str, what: str, found: os.stat_result) -> None:
    if found.st_uid not in (_ROOT, os.geteuid()):
        raise _refused(path, f"{what} belongs to user {_user(found.st_uid)}")


def _is_private(group: int) -> bool:
    """Tell whether a group has no members but this user and root, by its name and its list of members."""
    if group == _ROOT:
        return True
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
        found = grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}


def _refused(path: str, reason: str) -> ConfigurationError:
    whole = os.path.abspath(path)
    return ConfigurationError(
        f"is not read, because {reason}, who could make this program do anything. Take the right away "
        f"(`chmod go-w`, `chown`), or name the file if it is right: `export PGQRS_CONFIG={shell_quoted(whole)}`",
        source=whole,
    )


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name!r}"
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return f"{grp.getgrgid(number).gr_name!r}"
    except KeyError:
        return str(number)
