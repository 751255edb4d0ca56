"""turns of projects

Revision ID: 8e41c7ba90d2
Revises: 5d0b8c61f3a7
"""

import sqlalchemy as sa
from alembic import op

revision = '8e41c7ba90d2'
down_revision = '5d0b8c61f3a7'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index('ix_calendars_turns', 'calendars', [sa.text("(CASE platform WHEN 'ics' THEN 'feed' ELSE 'account' END)"), 'project_id', 'next_sync_at'], unique=False, postgresql_where=sa.text("state = 'connected' AND platform <> 'local'"))
    op.create_index('ix_calendars_leased', 'calendars', ['lease_until'], unique=False, postgresql_where=sa.text('lease_until IS NOT NULL'))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('ix_calendars_leased', table_name='calendars')
    op.drop_index('ix_calendars_turns', table_name='calendars')
