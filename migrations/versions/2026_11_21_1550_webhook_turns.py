"""webhook turns

Revision ID: 5e0b7c41d9a6
Revises: 5e8b1c94d7a3
"""

import sqlalchemy as sa
from alembic import op

revision = '5e0b7c41d9a6'
down_revision = '5e8b1c94d7a3'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('webhook_subscriptions', sa.Column('is_slow', sa.Boolean(), server_default='false', nullable=False))
    op.add_column('webhook_subscriptions', sa.Column('failing_days', sa.Integer(), server_default='0', nullable=False))
    op.add_column('webhook_subscriptions', sa.Column('failing_day_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('webhook_subscriptions', sa.Column('replay_from', sa.DateTime(timezone=True), nullable=True))
    op.add_column('webhook_subscriptions', sa.Column('replay_after_id', sa.Text(), server_default='', nullable=False))
    op.add_column('webhook_subscriptions', sa.Column('replay_until', sa.DateTime(timezone=True), nullable=True))
    op.add_column('webhook_subscriptions', sa.Column('is_resuming', sa.Boolean(), server_default='false', nullable=False))
    op.create_index('ix_webhook_subscriptions_requeueing', 'webhook_subscriptions', ['id'], unique=False, postgresql_where=sa.text('replay_from IS NOT NULL OR is_resuming'))
    # Rows that are there keep the default: they are found by their endpoint, as before.
    op.add_column('webhook_deliveries', sa.Column('waits', sa.Boolean(), server_default='false', nullable=False))
    op.create_index('ix_webhook_deliveries_ready', 'webhook_deliveries', ['subscription_id', 'next_attempt_at'], unique=False, postgresql_where=sa.text("status = 'pending' AND NOT waits"))
    op.create_index('ix_webhook_deliveries_waiting', 'webhook_deliveries', ['next_attempt_at'], unique=False, postgresql_where=sa.text("status = 'pending' AND waits"))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('ix_webhook_deliveries_waiting', table_name='webhook_deliveries')
    op.drop_index('ix_webhook_deliveries_ready', table_name='webhook_deliveries')
    op.drop_column('webhook_deliveries', 'waits')
    op.drop_index('ix_webhook_subscriptions_requeueing', table_name='webhook_subscriptions')
    for column in ('is_resuming', 'replay_until', 'replay_after_id', 'replay_from', 'failing_day_at', 'failing_days', 'is_slow'):
        op.drop_column('webhook_subscriptions', column)
