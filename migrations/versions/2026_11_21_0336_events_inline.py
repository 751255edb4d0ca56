"""events inline

Revision ID: 7b2f4d0e91ac
Revises: a4c1e93b27d0
"""

from alembic import op

revision = '7b2f4d0e91ac'
down_revision = 'a4c1e93b27d0'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute('ALTER TABLE calendar_events SET (toast_tuple_target = 8160)')


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute('ALTER TABLE calendar_events RESET (toast_tuple_target)')
