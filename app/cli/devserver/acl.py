"""Access control lists that let one more account pass through a folder (acl(5), Linux).

The list is an extended attribute in the format of linux/posix_acl_xattr.h: a version, then entries of
(tag, permissions, id).
"""

import errno
import os
import stat
import struct
import sys
from pathlib import Path

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_PASS = 0o1

Entries = dict[tuple[int, int], int]


def let_pass(folder: Path, uid: int) -> bool:
    """Allow the account to pass through the folder. Return whether that was a change.

    Raises OSError if the system or the file system has no access control lists.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "no access control lists are known for this system")
    entries = _load(folder)
    named = (_USER, uid)
    mask = (_MASK, _NO_ID)
    if entries.get(named, 0) & entries.get(mask, 0) & _PASS:
        return False
    # The mask limits all entries except the owner's and the others'. If there is none, the group's entry is the limit.
    entries[mask] = entries.get(mask, entries[_GROUP, _NO_ID]) | _PASS
    entries[named] = entries.get(named, 0) | _PASS
    # The system requires the entries to be sorted by tag and id.
    packed = b"".join(_ENTRY.pack(tag, entries[tag, who], who) for tag, who in sorted(entries))
    os.setxattr(folder, _ATTRIBUTE, _VERSION + packed)
    return True


def _load(folder: Path) -> Entries:
    """Return {(tag, id): permissions}. For a folder without a list, they come from its mode."""
    try:
        value = os.getxattr(folder, _ATTRIBUTE)
    except OSError as err:
        if err.errno != errno.ENODATA:
            raise
        mode = stat.S_IMODE(folder.stat().st_mode)
        return {
            (_OWNER, _NO_ID): mode >> 6 & 7,
            (_GROUP, _NO_ID): mode >> 3 & 7,
            (_OTHERS, _NO_ID): mode & 7,
        }
    if not value.startswith(_VERSION):
        raise OSError(errno.ENOTSUP, "an access control list of another version")
    return {(tag, who): permissions for tag, permissions, who in _ENTRY.iter_unpack(value[len(_VERSION) :])}
