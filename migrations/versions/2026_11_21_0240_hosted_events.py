"""hosted events

Revision ID: a4c1e93b27d0
Revises: 5d1f0a7be6c4
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = 'a4c1e93b27d0'
down_revision = '5d1f0a7be6c4'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('calendars', sa.Column('locale', sa.Text(), nullable=True))
    op.create_table('hosted_events',
    sa.Column('uid', sa.Text(), nullable=False),
    sa.Column('slot', sa.Text(), nullable=False),
    sa.Column('project_id', sa.String(length=32), nullable=False),
    sa.Column('calendar_id', sa.String(length=32), nullable=False),
    sa.Column('sequence', sa.Integer(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('description', sa.Text(), nullable=True),
    sa.Column('location', sa.Text(), nullable=True),
    sa.Column('meeting_url', sa.Text(), nullable=True),
    sa.Column('start_time', sa.DateTime(timezone=True), nullable=False),
    sa.Column('end_time', sa.DateTime(timezone=True), nullable=False),
    sa.Column('is_all_day', sa.Boolean(), nullable=False),
    sa.Column('timezone', sa.Text(), nullable=False),
    sa.Column('rrule', sa.Text(), nullable=True),
    sa.Column('recurrence_id', sa.DateTime(timezone=True), nullable=True),
    sa.Column('attendees', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('is_cancelled', sa.Boolean(), nullable=False),
    sa.Column('ends_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('expand_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['calendar_id'], ['calendars.id'], name=op.f('fk_hosted_events_calendar_id_calendars'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('uid', 'slot', name=op.f('pk_hosted_events'))
    )
    op.create_index('ix_hosted_events_expand_at', 'hosted_events', ['expand_at'], unique=False, postgresql_where=sa.text('expand_at IS NOT NULL'))
    op.create_index(op.f('ix_hosted_events_calendar_id'), 'hosted_events', ['calendar_id'], unique=False)
    op.create_table('inbound_replies',
    sa.Column('calendar_id', sa.String(length=32), nullable=False),
    sa.Column('message_id_sha256', sa.LargeBinary(), nullable=False),
    sa.Column('received_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['calendar_id'], ['calendars.id'], name=op.f('fk_inbound_replies_calendar_id_calendars'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('calendar_id', 'message_id_sha256', name=op.f('pk_inbound_replies'))
    )
    op.create_index(op.f('ix_inbound_replies_received_at'), 'inbound_replies', ['received_at'], unique=False)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index(op.f('ix_inbound_replies_received_at'), table_name='inbound_replies')
    op.drop_table('inbound_replies')
    op.drop_index(op.f('ix_hosted_events_calendar_id'), table_name='hosted_events')
    op.drop_index('ix_hosted_events_expand_at', table_name='hosted_events', postgresql_where=sa.text('expand_at IS NOT NULL'))
    op.drop_table('hosted_events')
    op.drop_column('calendars', 'locale')
