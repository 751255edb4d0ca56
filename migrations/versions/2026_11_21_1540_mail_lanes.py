"""mail lanes

Revision ID: 5e8b1c94d7a3
Revises: b7f2c05d9e13
"""

import sqlalchemy as sa
from alembic import op

revision = '5e8b1c94d7a3'
down_revision = 'b7f2c05d9e13'
branch_labels = None
depends_on = None

LANE = "(CASE WHEN mailbox_id IS NULL THEN 'smtp:' || owner_email || ':' || (position % 4)::text ELSE 'mailbox:' || mailbox_id END)"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table('mail_lanes',
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('lease_token', sa.Text(), nullable=True),
    sa.Column('leased_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('served_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('held_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('hold_count', sa.Integer(), server_default='0', nullable=False),
    sa.Column('hold_reason', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('key', name=op.f('pk_mail_lanes'))
    )
    op.add_column('invitation_mails', sa.Column('thread_subject', sa.Text(), nullable=True))
    op.add_column('invitation_mails', sa.Column('goes_first', sa.Boolean(), server_default=sa.text('false'), nullable=False))
    # Of pending rows alone: small. Workers of the release before still use ix_invitation_mails_due.
    op.create_index('ix_invitation_mails_lanes', 'invitation_mails', ['project_id', sa.text(LANE), 'next_attempt_at', 'position'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.create_index('ix_invitation_mails_first', 'invitation_mails', [sa.text(LANE), 'position'], unique=False, postgresql_where=sa.text("status = 'pending' AND goes_first"))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('ix_invitation_mails_first', table_name='invitation_mails')
    op.drop_index('ix_invitation_mails_lanes', table_name='invitation_mails')
    op.drop_column('invitation_mails', 'goes_first')
    op.drop_column('invitation_mails', 'thread_subject')
    op.drop_table('mail_lanes')
