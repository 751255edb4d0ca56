"""trials of disconnected calendars

Revision ID: 8c41d07be2a5
Revises: b8f15a03d7c2
"""

import sqlalchemy as sa
from alembic import op

revision = '8c41d07be2a5'
down_revision = 'b8f15a03d7c2'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('calendars', sa.Column('sync_trial', sa.Boolean(), server_default='false', nullable=False))
    # No row has one yet: this reads the table once, and writes nothing.
    op.create_index('ix_calendars_trials', 'calendars', ['next_sync_at'], unique=False, postgresql_where=sa.text('sync_trial'))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('ix_calendars_trials', table_name='calendars')
    op.drop_column('calendars', 'sync_trial')
