"""webhooks

Revision ID: dc91732c417a
Revises: c63772a57a3f
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = 'dc91732c417a'
down_revision = 'c63772a57a3f'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table('webhook_subscriptions',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('project_id', sa.String(length=32), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('triggers', sa.ARRAY(sa.Text()), nullable=False),
    sa.Column('is_active', sa.Boolean(), server_default='true', nullable=False),
    sa.Column('include_events', sa.Boolean(), server_default='false', nullable=False),
    sa.Column('secrets_sealed', sa.LargeBinary(), nullable=False),
    sa.Column('disabled_reason', sa.Text(), nullable=True),
    sa.Column('failing_since', sa.DateTime(timezone=True), nullable=True),
    sa.Column('paused_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_webhook_subscriptions_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_webhook_subscriptions'))
    )
    op.create_index('ix_webhook_subscriptions_project_id_created_at', 'webhook_subscriptions', ['project_id', 'created_at', 'id'], unique=False)
    op.create_table('webhook_deliveries',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('subscription_id', sa.String(length=32), nullable=False),
    sa.Column('trigger', sa.Text(), nullable=False),
    sa.Column('calendar_id', sa.Text(), nullable=True),
    sa.Column('status', sa.Text(), server_default='pending', nullable=False),
    sa.Column('idempotency_key', sa.Text(), nullable=False),
    sa.Column('body', sa.LargeBinary(), nullable=False),
    sa.Column('can_merge', sa.Boolean(), server_default='false', nullable=False),
    sa.Column('merged_into', sa.Text(), nullable=True),
    sa.Column('retry_count', sa.Integer(), server_default='0', nullable=False),
    sa.Column('next_attempt_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_token', sa.Text(), nullable=True),
    sa.Column('attempts', postgresql.JSONB(astext_type=sa.Text()), server_default='[]', nullable=False),
    sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("(status = 'pending') = (next_attempt_at IS NOT NULL)", name=op.f('ck_webhook_deliveries_pending_is_due')),
    sa.CheckConstraint("status IN ('pending', 'success', 'failed')", name=op.f('ck_webhook_deliveries_status')),
    sa.ForeignKeyConstraint(['subscription_id'], ['webhook_subscriptions.id'], name=op.f('fk_webhook_deliveries_subscription_id_webhook_subscriptions'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_webhook_deliveries')),
    postgresql_with={'autovacuum_vacuum_scale_factor': 0.02, 'autovacuum_analyze_scale_factor': 0.02}
    )
    op.create_index('ix_webhook_deliveries_due', 'webhook_deliveries', ['subscription_id', 'next_attempt_at'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.create_index('ix_webhook_deliveries_failed', 'webhook_deliveries', ['subscription_id', 'created_at', 'id'], unique=False, postgresql_where=sa.text("status = 'failed'"))
    op.create_index('ix_webhook_deliveries_finished_at', 'webhook_deliveries', ['finished_at'], unique=False, postgresql_where=sa.text('finished_at IS NOT NULL'))
    op.create_index('ix_webhook_deliveries_leased', 'webhook_deliveries', ['subscription_id', 'next_attempt_at'], unique=False, postgresql_where=sa.text('lease_token IS NOT NULL'))
    op.create_index('ix_webhook_deliveries_log', 'webhook_deliveries', ['subscription_id', 'created_at', 'id'], unique=False)
    op.create_index('ix_webhook_deliveries_pending_of_calendar', 'webhook_deliveries', ['calendar_id', 'subscription_id'], unique=False, postgresql_where=sa.text("status = 'pending'"))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('ix_webhook_deliveries_pending_of_calendar', table_name='webhook_deliveries', postgresql_where=sa.text("status = 'pending'"))
    op.drop_index('ix_webhook_deliveries_log', table_name='webhook_deliveries')
    op.drop_index('ix_webhook_deliveries_leased', table_name='webhook_deliveries', postgresql_where=sa.text('lease_token IS NOT NULL'))
    op.drop_index('ix_webhook_deliveries_finished_at', table_name='webhook_deliveries', postgresql_where=sa.text('finished_at IS NOT NULL'))
    op.drop_index('ix_webhook_deliveries_failed', table_name='webhook_deliveries', postgresql_where=sa.text("status = 'failed'"))
    op.drop_index('ix_webhook_deliveries_due', table_name='webhook_deliveries', postgresql_where=sa.text("status = 'pending'"))
    op.drop_table('webhook_deliveries')
    op.drop_index('ix_webhook_subscriptions_project_id_created_at', table_name='webhook_subscriptions')
    op.drop_table('webhook_subscriptions')
