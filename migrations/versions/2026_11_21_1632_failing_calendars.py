"""failing calendars

Revision ID: b8f15a03d7c2
Revises: 7d20c4b9e6a1
"""

from alembic import op

revision = 'b8f15a03d7c2'
down_revision = '7d20c4b9e6a1'
branch_labels = None
depends_on = None

_NAME = 'ix_calendars_project_failing'


def upgrade() -> None:
    """Writers go on meanwhile. One that was cut off starts again: an index that is half built is dropped first."""
    with op.get_context().autocommit_block():
        op.execute('SET statement_timeout = 0')
        op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {_NAME}')
        op.execute(
            f'CREATE INDEX CONCURRENTLY {_NAME} ON calendars (project_id, platform, created_at, id) '
            "WHERE state = 'connected' AND (sync_failing_since IS NOT NULL OR outage_scope IS NOT NULL)"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {_NAME}')
