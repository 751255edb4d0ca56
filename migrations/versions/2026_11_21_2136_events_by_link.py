"""events by their meeting link

Revision ID: 84d1f6a2c90b
Revises: 5c0e93b71fd8
"""

from alembic import op

revision = '84d1f6a2c90b'
down_revision = '5c0e93b71fd8'
branch_labels = None
depends_on = None

_NAME = 'ix_calendar_events_project_by_meeting_url'


def upgrade() -> None:
    """Writers go on meanwhile. One that was cut off starts again: an index that is half built is dropped first."""
    with op.get_context().autocommit_block():
        op.execute('SET statement_timeout = 0')
        op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {_NAME}')
        op.execute(
            f'CREATE INDEX CONCURRENTLY {_NAME} ON calendar_events (project_id, md5(meeting_url), start_time) '
            'WHERE meeting_url IS NOT NULL AND NOT is_deleted'
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {_NAME}')
