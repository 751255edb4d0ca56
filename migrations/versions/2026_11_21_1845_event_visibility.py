"""visibility of events

Revision ID: 3f6b1c9d2e70
Revises: 8c41d07be2a5
"""

import sqlalchemy as sa
from alembic import op

revision = '3f6b1c9d2e70'
down_revision = '8c41d07be2a5'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('calendar_events', sa.Column('visibility', sa.Text(), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('calendar_events', 'visibility')
