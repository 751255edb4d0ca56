"""busy status, visibility, type and etag of events; window of a calendar

Revision ID: 1d5e7a92c4f0
Revises: 8c41d07be2a5
"""

import sqlalchemy as sa
from alembic import op

revision = '1d5e7a92c4f0'
down_revision = '8c41d07be2a5'
branch_labels = None
depends_on = None

_EVENT_COLUMNS = ('busy_status', 'visibility', 'event_type', 'etag')
_DAYS = ('window_past_days', 'window_future_days')
_TIMES = ('covered_from', 'covered_until')


def upgrade() -> None:
    # Columns without a default: no row is read or written.
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in _EVENT_COLUMNS:
        op.add_column('calendar_events', sa.Column(name, sa.Text(), nullable=True))
    for name in _DAYS:
        op.add_column('calendars', sa.Column(name, sa.Integer(), nullable=True))
    for name in _TIMES:
        op.add_column('calendars', sa.Column(name, sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in (*_TIMES, *_DAYS):
        op.drop_column('calendars', name)
    for name in _EVENT_COLUMNS:
        op.drop_column('calendar_events', name)
