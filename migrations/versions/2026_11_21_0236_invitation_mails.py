"""invitation mails

Revision ID: 5d1f0a7be6c4
Revises: 618dd2cb81a0
"""

import sqlalchemy as sa
from alembic import op

revision = '5d1f0a7be6c4'
down_revision = '618dd2cb81a0'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table('invitation_mails',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('position', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('project_id', sa.String(length=32), nullable=False),
    sa.Column('calendar_id', sa.String(length=32), nullable=False),
    sa.Column('event_id', sa.String(length=32), nullable=False),
    sa.Column('event_uid', sa.Text(), nullable=False),
    sa.Column('recurrence_id', sa.DateTime(timezone=True), nullable=True),
    sa.Column('method', sa.Text(), nullable=False),
    sa.Column('sequence', sa.Integer(), nullable=False),
    sa.Column('recipient_key', sa.Text(), nullable=False),
    sa.Column('recipient_email', sa.Text(), nullable=False),
    sa.Column('recipient_name', sa.Text(), nullable=True),
    sa.Column('mailbox_id', sa.Text(), nullable=True),
    sa.Column('sender_email', sa.Text(), nullable=False),
    sa.Column('sender_name', sa.Text(), nullable=True),
    sa.Column('owner_email', sa.Text(), nullable=False),
    sa.Column('message_id', sa.Text(), nullable=False),
    sa.Column('thread_id', sa.Text(), nullable=True),
    sa.Column('mail', sa.LargeBinary(), nullable=True),
    sa.Column('status', sa.Text(), server_default='pending', nullable=False),
    sa.Column('attempt_count', sa.Integer(), server_default='0', nullable=False),
    sa.Column('open_submits', sa.Integer(), server_default='0', nullable=False),
    sa.Column('next_attempt_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_token', sa.Text(), nullable=True),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('messages_id', sa.Text(), nullable=True),
    sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("method IN ('REQUEST', 'CANCEL', 'REPLY')", name=op.f('ck_invitation_mails_method')),
    sa.CheckConstraint("status IN ('pending', 'sent', 'failed', 'unknown')", name=op.f('ck_invitation_mails_status')),
    sa.CheckConstraint("(status = 'pending') = (next_attempt_at IS NOT NULL)", name=op.f('ck_invitation_mails_pending_is_due')),
    sa.CheckConstraint("(status = 'pending') = (mail IS NOT NULL)", name=op.f('ck_invitation_mails_pending_has_mail')),
    sa.ForeignKeyConstraint(['calendar_id'], ['calendars.id'], name=op.f('fk_invitation_mails_calendar_id_calendars'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_invitation_mails'))
    )
    op.create_index('ix_invitation_mails_due', 'invitation_mails', ['next_attempt_at'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.create_index('ix_invitation_mails_log', 'invitation_mails', ['event_id', 'created_at', 'id'], unique=False)
    op.create_index('ix_invitation_mails_pending_of_recipient', 'invitation_mails', ['calendar_id', 'event_uid', 'recipient_key', 'position'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.create_index('ix_invitation_mails_thread', 'invitation_mails', ['calendar_id', 'event_uid', 'recipient_key', 'position'], unique=False)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table('invitation_mails')
