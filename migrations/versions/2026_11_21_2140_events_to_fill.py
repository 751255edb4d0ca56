"""index of events without the derived fields

Revision ID: 6f2b90c3d71e
Revises: 84d1f6a2c90b
"""

from alembic import op

revision = '6f2b90c3d71e'
down_revision = '84d1f6a2c90b'
branch_labels = None
depends_on = None

_NAME = 'ix_calendar_events_to_fill'


def upgrade() -> None:
    """Writers go on meanwhile. At first every row is in the index; a worker fills the rows, which leave it."""
    with op.get_context().autocommit_block():
        op.execute('SET statement_timeout = 0')
        op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {_NAME}')
        op.execute(f'CREATE INDEX CONCURRENTLY {_NAME} ON calendar_events (calendar_id, id) WHERE event_type IS NULL')


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {_NAME}')
