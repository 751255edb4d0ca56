"""mails by uid

Revision ID: 3c9a17d5e2f8
Revises: 7b2f4d0e91ac
"""

import sqlalchemy as sa
from alembic import op

revision = '3c9a17d5e2f8'
down_revision = '7b2f4d0e91ac'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('ix_invitation_mails_log', table_name='invitation_mails')
    op.drop_column('invitation_mails', 'event_id')
    # Mails of one change are due at the same time: without the position they would be sorted for every claim.
    op.drop_index('ix_invitation_mails_due', table_name='invitation_mails')
    op.create_index('ix_invitation_mails_due', 'invitation_mails', ['next_attempt_at', 'position'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.drop_index('ix_invitation_mails_pending_of_recipient', table_name='invitation_mails')  # the one for threads does as well
    # Mails that failed are kept whole, so that they can be sent again.
    op.drop_constraint('ck_invitation_mails_pending_has_mail', 'invitation_mails')
    op.create_check_constraint(op.f('ck_invitation_mails_pending_has_mail'), 'invitation_mails', "status <> 'pending' OR mail IS NOT NULL")
    op.create_index('ix_invitation_mails_kept', 'invitation_mails', ['finished_at'], unique=False, postgresql_where=sa.text("status <> 'pending' AND mail IS NOT NULL"))
    op.add_column('invitation_mails', sa.Column('give_up_at', sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp() + interval '1 day'"), nullable=False))
    op.create_index('ix_invitation_mails_log', 'invitation_mails', ['calendar_id', 'event_uid', 'created_at', 'id'], unique=False)
    op.create_index('ix_invitation_mails_failed', 'invitation_mails', ['calendar_id', 'event_uid'], unique=False, postgresql_where=sa.text("status = 'failed'"))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('invitation_mails', 'give_up_at')
    op.drop_index('ix_invitation_mails_kept', table_name='invitation_mails')
    op.drop_constraint('ck_invitation_mails_pending_has_mail', 'invitation_mails')
    op.execute("UPDATE invitation_mails SET mail = NULL WHERE status <> 'pending'")
    op.create_check_constraint(op.f('ck_invitation_mails_pending_has_mail'), 'invitation_mails', "(status = 'pending') = (mail IS NOT NULL)")
    op.drop_index('ix_invitation_mails_failed', table_name='invitation_mails')
    op.create_index('ix_invitation_mails_pending_of_recipient', 'invitation_mails', ['calendar_id', 'event_uid', 'recipient_key', 'position'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.drop_index('ix_invitation_mails_due', table_name='invitation_mails')
    op.create_index('ix_invitation_mails_due', 'invitation_mails', ['next_attempt_at'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.drop_index('ix_invitation_mails_log', table_name='invitation_mails')
    op.add_column('invitation_mails', sa.Column('event_id', sa.String(length=32), server_default='', nullable=False))
    op.execute("""
        UPDATE invitation_mails AS m SET event_id = e.id
        FROM (SELECT DISTINCT ON (calendar_id, ical_uid) calendar_id, ical_uid, id FROM calendar_events ORDER BY calendar_id, ical_uid, start_time) AS e
        WHERE e.calendar_id = m.calendar_id AND e.ical_uid = m.event_uid
    """)
    op.alter_column('invitation_mails', 'event_id', server_default=None)
    op.create_index('ix_invitation_mails_log', 'invitation_mails', ['event_id', 'created_at', 'id'], unique=False)
