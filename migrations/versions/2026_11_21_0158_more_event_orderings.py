"""more event orderings

Revision ID: 3f0c9a6d51be
Revises: ccef704cc402
"""

import sqlalchemy as sa
from alembic import op

revision = '3f0c9a6d51be'
down_revision = 'ccef704cc402'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index('ix_calendar_events_calendar_id_created_at', 'calendar_events', ['calendar_id', 'created_at', 'id'], unique=False)
    op.create_index('ix_calendar_events_calendar_id_end_time', 'calendar_events', ['calendar_id', sa.literal_column("coalesce(end_time, 'infinity'::timestamptz)"), 'id'], unique=False)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('ix_calendar_events_calendar_id_end_time', table_name='calendar_events')
    op.drop_index('ix_calendar_events_calendar_id_created_at', table_name='calendar_events')
