"""bots

Revision ID: 980d23a8ebc1
Revises: 3f0c9a6d51be
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '980d23a8ebc1'
down_revision = '3f0c9a6d51be'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table('bots',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('project_id', sa.String(length=32), nullable=False),
    sa.Column('calendar_event_id', sa.Text(), nullable=True),
    sa.Column('meeting_url', sa.Text(), nullable=True),
    sa.Column('join_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('bot_name', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='scheduled', nullable=False),
    sa.Column('metadata', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('deduplication_key', sa.Text(), nullable=True),
    sa.Column('holds_key', sa.Boolean(), server_default='true', nullable=False),
    sa.Column('bot_settings', postgresql.JSON(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.Column('events', postgresql.JSONB(astext_type=sa.Text()), server_default='[]', nullable=False),
    sa.Column('runner_bot_id', sa.Text(), nullable=True),
    sa.Column('attempt_count', sa.Integer(), server_default='0', nullable=False),
    sa.Column('next_attempt_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_token', sa.Text(), nullable=True),
    sa.Column('may_be_handed_over', sa.Boolean(), server_default='false', nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("next_attempt_at IS NULL OR state = 'launching'", name=op.f('ck_bots_only_launching_is_attempted')),
    sa.CheckConstraint("state IN ('scheduled', 'launching', 'launched', 'fatal_error')", name=op.f('ck_bots_state')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_bots_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_bots'))
    )
    op.create_index('ix_bots_attempts', 'bots', ['next_attempt_at'], unique=False, postgresql_where=sa.text('next_attempt_at IS NOT NULL'))
    op.create_index('ix_bots_calendar_event_id', 'bots', ['calendar_event_id'], unique=False)
    op.create_index('ix_bots_due', 'bots', ['join_at'], unique=False, postgresql_where=sa.text("state = 'scheduled'"))
    op.create_index('ix_bots_project_id_created_at', 'bots', ['project_id', 'created_at', 'id'], unique=False)
    op.create_index('ix_bots_project_id_deduplication_key', 'bots', ['project_id', 'deduplication_key'], unique=False)
    op.create_index('uq_bots_project_id_deduplication_key', 'bots', ['project_id', 'deduplication_key'], unique=True, postgresql_where=sa.text('holds_key'))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('uq_bots_project_id_deduplication_key', table_name='bots', postgresql_where=sa.text('holds_key'))
    op.drop_index('ix_bots_project_id_deduplication_key', table_name='bots')
    op.drop_index('ix_bots_project_id_created_at', table_name='bots')
    op.drop_index('ix_bots_due', table_name='bots', postgresql_where=sa.text("state = 'scheduled'"))
    op.drop_index('ix_bots_calendar_event_id', table_name='bots')
    op.drop_index('ix_bots_attempts', table_name='bots', postgresql_where=sa.text('next_attempt_at IS NOT NULL'))
    op.drop_table('bots')
