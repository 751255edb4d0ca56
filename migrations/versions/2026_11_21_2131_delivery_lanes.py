"""index of the lanes of deliveries

Revision ID: b90d3f6ae817
Revises: 7c2e91b4d0f5
"""

from alembic import op

revision = 'b90d3f6ae817'
down_revision = '7c2e91b4d0f5'
branch_labels = None
depends_on = None

_NAME = 'ix_webhook_deliveries_lanes'


def upgrade() -> None:
    """Writers go on meanwhile. One that was cut off starts again: an index that is half built is dropped first."""
    with op.get_context().autocommit_block():
        op.execute('SET statement_timeout = 0')
        op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {_NAME}')
        op.execute(
            f'CREATE INDEX CONCURRENTLY {_NAME} ON webhook_deliveries (subscription_id, calendar_id, position) '
            "WHERE status = 'pending' AND position IS NOT NULL"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {_NAME}')
