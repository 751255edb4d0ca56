"""Letting one account pass through a folder by its access control list, and nobody else (acl(5), Linux).

The list is kept in an extended attribute, as linux/posix_acl_xattr.h has it: a version, then entries of
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
_NOBODY_NAMED = 0xFFFFFFFF
_PASS = 0o1

Entries = dict[tuple[int, int], int]


def let_pass(folder: Path, uid: int) -> bool:
    """Whether it had to be changed. Raises OSError where the file system (or the system) has no such lists."""
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "no access control lists are known for this system")
    entries = _load(folder)
    named = (_USER, uid)
    mask = (_MASK, _NOBODY_NAMED)
    if entries.get(named, 0) & entries.get(mask, 0) & _PASS:
        return False
    # The mask bounds all entries but the owner's and the others'; without one, the group's is the only such entry.
    entries[mask] = entries.get(mask, entries[_GROUP, _NOBODY_NAMED]) | _PASS
    entries[named] = entries.get(named, 0) | _PASS
    # The system wants them by tag, and then by id.
    packed = b"".join(_ENTRY.pack(tag, entries[tag, who], who) for tag, who in sorted(entries))
    os.setxattr(folder, _ATTRIBUTE, _VERSION + packed)
    return True


def _load(folder: Path) -> Entries:
    """(tag, id) -> permissions; of a folder without a list what its mode says."""
    try:
        value = os.getxattr(folder, _ATTRIBUTE)
    except OSError as err:
        if err.errno != errno.ENODATA:
            raise
        mode = stat.S_IMODE(folder.stat().st_mode)
        return {
            (_OWNER, _NOBODY_NAMED): mode >> 6 & 7,
            (_GROUP, _NOBODY_NAMED): mode >> 3 & 7,
            (_OTHERS, _NOBODY_NAMED): mode & 7,
        }
    if not value.startswith(_VERSION):
        raise OSError(errno.ENOTSUP, "an access control list of another version")
    return {(tag, who): permissions for tag, permissions, who in _ENTRY.iter_unpack(value[len(_VERSION) :])}
