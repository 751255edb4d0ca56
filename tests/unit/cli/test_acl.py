"""Access control lists: one account may pass through a folder, and no other."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.devserver.acl import let_pass

ACCOUNT, OTHER = 65534, 65533

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="takes root, as what it tests does"
)


def can_read(path: Path, uid: int) -> bool:
    done = subprocess.run(
        ["cat", str(path)], user=uid, group=uid, extra_groups=[], cwd="/", capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture
def closed():
    """A folder that is root's alone, with a file in it that every account might read."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    (folder / "file").write_text("x")
    (folder / "file").chmod(0o644)
    yield folder
    shutil.rmtree(folder)


def allow(folder: Path, uid: int) -> bool:
    try:
        return let_pass(folder, uid)
    except OSError as err:
        if err.errno == errno.ENOTSUP:
            pytest.skip("this file system has no access control lists")
        raise


def test_one_account_may_pass_and_no_other(closed):
    assert not can_read(closed / "file", ACCOUNT)
    assert allow(closed, ACCOUNT)
    assert can_read(closed / "file", ACCOUNT)
    assert not can_read(closed / "file", OTHER)
    assert stat.S_IMODE(closed.stat().st_mode) & 0o007 == 0
    listed = subprocess.run(
        ["ls", str(closed)], user=ACCOUNT, group=ACCOUNT, extra_groups=[], capture_output=True, check=False
    )
    assert listed.returncode != 0  # to pass through is all that is allowed


def test_a_second_time_changes_nothing(closed):
    assert allow(closed, ACCOUNT)
    assert not allow(closed, ACCOUNT)


def test_other_entries_are_kept(closed):
    assert allow(closed, ACCOUNT)
    assert allow(closed, OTHER)
    assert can_read(closed / "file", ACCOUNT)
    assert can_read(closed / "file", OTHER)
    assert closed.stat().st_mode & 0o700 == 0o700
