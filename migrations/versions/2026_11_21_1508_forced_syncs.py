"""forced syncs

Revision ID: 5d0b8c61f3a7
Revises: 3c9a17d5e2f8
"""

import sqlalchemy as sa
from alembic import op

revision = '5d0b8c61f3a7'
down_revision = '3c9a17d5e2f8'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('calendars', sa.Column('sync_forced', sa.Boolean(), server_default=sa.text('false'), nullable=False))
    op.add_column('calendars', sa.Column('sync_started_at', sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('calendars', 'sync_started_at')
    op.drop_column('calendars', 'sync_forced')
