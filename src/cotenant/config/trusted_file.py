"""Whether a configuration that was found, not named, may be read: others could have put it there."""

import os
import stat
from pathlib import Path

from cotenant.domain.errors import BadSetting


def refuse_if_others_may_write(path: Path) -> None:
    """Refuse a file that others own or may write, or may replace in its folder. Raises BadSetting.

    The owner must be this user or root, as for the configuration of ssh: the file may name commands to run.
    """
    for each in (path, path.parent):
        # A link, too, is whose it is: its target may be a file of root that says something else.
        for status in (each.lstat(), each.stat()):
            why = _fault(status)
            if why:
                raise BadSetting(
                    f"{path} is not read: {each.absolute()} {why}",
                    hint=f"If you trust it, name it: --config {path.absolute()} or COTENANT_CONFIG; "
                    "or correct the owner, and chmod go-w.",
                )


def _fault(status: os.stat_result) -> str | None:
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to another user ({status.st_uid})"
    if stat.S_ISLNK(status.st_mode) or (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        return None
    if status.st_mode & stat.S_IWOTH:
        return "may be written by every user"
    if status.st_mode & stat.S_IWGRP and not _is_private_group(status):
        return f"may be written by the group {status.st_gid}"
    return None


def _is_private_group(status: os.stat_result) -> bool:
    """Whether the group is its owner's alone, as distributions with umask 002 make one for each user."""
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    members = {*group.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == group.gr_gid)}
    return members <= {owner.pw_name}
