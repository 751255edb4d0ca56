"""busy events by time

Revision ID: 6f3b9d20ae71
Revises: 1d5e7a92c4f0
"""

from alembic import op

revision = '6f3b9d20ae71'
down_revision = '1d5e7a92c4f0'
branch_labels = None
depends_on = None

_BUSY = (
    "NOT is_deleted AND response_status IS DISTINCT FROM 'declined' "
    "AND coalesce(busy_status, 'busy') NOT IN ('free', 'working_elsewhere')"
)
_INDEXES = {
    'ix_calendar_events_busy_by_start': (
        '(calendar_id, start_time) INCLUDE (end_time, busy_status) '
        f'WHERE {_BUSY} AND start_time < end_time'
    ),
    'ix_calendar_events_long_busy_by_end': (
        '(calendar_id, end_time) INCLUDE (start_time, busy_status) '
        f"WHERE {_BUSY} AND end_time - start_time > interval '24 hours'"
    ),
}


def upgrade() -> None:
    """Writers go on meanwhile. One that was cut off starts again: an index that is half built is dropped first."""
    with op.get_context().autocommit_block():
        op.execute('SET statement_timeout = 0')
        for name, definition in _INDEXES.items():
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {name}')
            op.execute(f'CREATE INDEX CONCURRENTLY {name} ON calendar_events {definition}')


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in _INDEXES:
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {name}')
