"""event indexes by kind

Revision ID: c1d75a20e6b4
Revises: 4b8e61d0c7a5
"""

from alembic import op

revision = 'c1d75a20e6b4'
down_revision = '4b8e61d0c7a5'
branch_labels = None
depends_on = None

_START = "coalesce(start_time, 'infinity'::timestamptz)"
_END = "coalesce(end_time, 'infinity'::timestamptz)"
_KEYS = {'updated': 'updated_at', 'created': 'created_at', 'start': _START, 'end': _END}

_NEW = {
    f'ix_calendar_events_{scope}_by_{name}': f'{scope}_id, is_deleted, {key}, id'
    for scope in ('calendar', 'project')
    for name, key in _KEYS.items()
} | {'ix_calendar_events_project_id_ical_uid_calendar_id': 'project_id, ical_uid, calendar_id'}

_OLD = {
    f'ix_calendar_events_{scope}_id_{column}': f'{scope}_id, {key}, id'
    for scope in ('calendar', 'project')
    for column, key in {'updated_at': 'updated_at', 'created_at': 'created_at', 'start_time': _START, 'end_time': _END}.items()
} | {'ix_calendar_events_project_id_ical_uid': 'project_id, ical_uid'}


def upgrade() -> None:
    """Writers go on meanwhile. One that was cut off starts again: an index that is half built is dropped first.

    Lists of code from before this revision sort what they find until that code is replaced.
    """
    _replace(_OLD, _NEW)


def downgrade() -> None:
    _replace(_NEW, _OLD)


def _replace(old: dict[str, str], new: dict[str, str]) -> None:
    with op.get_context().autocommit_block():
        op.execute('SET statement_timeout = 0')
        for name, columns in new.items():
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {name}')
            op.execute(f'CREATE INDEX CONCURRENTLY {name} ON calendar_events ({columns})')
        for name in old:
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {name}')
