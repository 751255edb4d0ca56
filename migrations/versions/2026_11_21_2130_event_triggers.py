"""filters and lanes of webhooks, and event.starting_soon

Revision ID: 7c2e91b4d0f5
Revises: 6f3b9d20ae71
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = '7c2e91b4d0f5'
down_revision = '6f3b9d20ae71'
branch_labels = None
depends_on = None

_FILTERS = ('starting_soon_minutes', 'ordering', 'changed_fields', 'metadata', 'calendar_ids')


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Defaults are constants, so no row is written. All deliveries that are there stay outside of lanes.
    op.add_column('webhook_subscriptions', sa.Column('calendar_ids', sa.ARRAY(sa.Text()), nullable=True))
    op.add_column('webhook_subscriptions', sa.Column('metadata', JSONB(), nullable=True))
    op.add_column('webhook_subscriptions', sa.Column('changed_fields', sa.ARRAY(sa.Text()), nullable=True))
    op.add_column('webhook_subscriptions', sa.Column('ordering', sa.Text(), server_default='any', nullable=False))
    op.add_column('webhook_subscriptions', sa.Column('starting_soon_minutes', sa.Integer(), server_default='10', nullable=False))
    op.create_check_constraint('ordering', 'webhook_subscriptions', "ordering IN ('any', 'fifo')")
    op.create_index('ix_webhook_subscriptions_starting_soon', 'webhook_subscriptions', ['id'], unique=False, postgresql_where=sa.text("is_active AND 'event.starting_soon' = ANY (triggers)"))
    op.execute('CREATE SEQUENCE webhook_delivery_positions')
    op.add_column('webhook_deliveries', sa.Column('position', sa.BigInteger(), nullable=True))
    op.create_table(
        'starting_soon_positions',
        sa.Column('subscription_id', sa.String(length=32), nullable=False),
        sa.Column('subscription_updated_at', sa.DateTime(timezone=True), nullable=True),
        sa.Column('starts_until', sa.DateTime(timezone=True), nullable=True),
        sa.Column('changes_until', sa.DateTime(timezone=True), nullable=True),
        sa.Column('next_look_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
        sa.ForeignKeyConstraint(['subscription_id'], ['webhook_subscriptions.id'], name=op.f('fk_starting_soon_positions_subscription_id_webhook_subscriptions'), ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('subscription_id', name=op.f('pk_starting_soon_positions')),
    )
    op.create_index(op.f('ix_starting_soon_positions_next_look_at'), 'starting_soon_positions', ['next_look_at'], unique=False)
    op.create_table(
        'starting_soon_notices',
        sa.Column('subscription_id', sa.String(length=32), nullable=False),
        sa.Column('calendar_event_id', sa.String(length=32), nullable=False),
        sa.Column('start_time', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['subscription_id'], ['webhook_subscriptions.id'], name=op.f('fk_starting_soon_notices_subscription_id_webhook_subscriptions'), ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('subscription_id', 'calendar_event_id', 'start_time', name=op.f('pk_starting_soon_notices')),
    )
    op.create_index('ix_starting_soon_notices_start_time', 'starting_soon_notices', ['start_time'], unique=False)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table('starting_soon_notices')
    op.drop_table('starting_soon_positions')
    # Without lanes, everything that waits in one is due.
    op.execute("UPDATE webhook_deliveries SET next_attempt_at = created_at, waits = false WHERE status = 'pending' AND position IS NOT NULL AND lease_token IS NULL")
    op.drop_column('webhook_deliveries', 'position')
    op.execute('DROP SEQUENCE webhook_delivery_positions')
    op.drop_index('ix_webhook_subscriptions_starting_soon', table_name='webhook_subscriptions')
    op.drop_constraint('ordering', 'webhook_subscriptions', type_='check')
    for name in _FILTERS:
        op.drop_column('webhook_subscriptions', name)
