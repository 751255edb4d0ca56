"""join rules, policies of events, runs; which rule made a bot

Revision ID: 5c0e93b71fd8
Revises: b90d3f6ae817
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '5c0e93b71fd8'
down_revision = 'b90d3f6ae817'
branch_labels = None
depends_on = None



def _project(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ['project_id'], ['projects.id'], name=op.f(f'fk_{table}_project_id_projects'), ondelete='CASCADE'
    )


def _calendar(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ['calendar_id'], ['calendars.id'], name=op.f(f'fk_{table}_calendar_id_calendars'), ondelete='CASCADE'
    )


def _at(name: str) -> sa.Column[datetime]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False
    )


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        'join_rules',
        sa.Column('target', sa.String(length=32), nullable=False),
        sa.Column('project_id', sa.String(length=32), nullable=False),
        sa.Column('calendar_id', sa.String(length=32), nullable=True),
        sa.Column('rules', postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column('bot_scope', sa.Text(), nullable=False),
        _at('updated_at'),
        sa.CheckConstraint("bot_scope IN ('event', 'meeting')", name=op.f('ck_join_rules_bot_scope')),
        _project('join_rules'),
        _calendar('join_rules'),
        sa.PrimaryKeyConstraint('target', name=op.f('pk_join_rules')),
        sa.UniqueConstraint('calendar_id', name=op.f('uq_join_rules_calendar_id')),
    )
    op.create_index('ix_join_rules_project_id', 'join_rules', ['project_id'])
    op.create_table(
        'event_bot_policies',
        sa.Column('calendar_event_id', sa.String(length=32), nullable=False),
        sa.Column('project_id', sa.String(length=32), nullable=False),
        sa.Column('calendar_id', sa.String(length=32), nullable=False),
        sa.Column('policy', sa.Text(), nullable=False),
        _at('updated_at'),
        sa.CheckConstraint("policy IN ('rules', 'always', 'never')", name=op.f('ck_event_bot_policies_policy')),
        _project('event_bot_policies'),
        _calendar('event_bot_policies'),
        sa.PrimaryKeyConstraint('calendar_event_id', name=op.f('pk_event_bot_policies')),
    )
    op.create_index('ix_event_bot_policies_project_id', 'event_bot_policies', ['project_id'])
    op.create_index('ix_event_bot_policies_calendar_id', 'event_bot_policies', ['calendar_id'])
    op.create_table(
        'join_rule_runs',
        sa.Column('target', sa.String(length=32), nullable=False),
        sa.Column('project_id', sa.String(length=32), nullable=False),
        sa.Column('calendar_id', sa.String(length=32), nullable=True),
        sa.Column('calendar_event_id', sa.Text(), nullable=True),
        sa.Column('after_event_id', sa.Text(), server_default='', nullable=False),
        sa.Column('meeting_url', sa.Text(), nullable=True),
        sa.Column('join_at', sa.DateTime(timezone=True), nullable=True),
        _at('requested_at'),
        _project('join_rule_runs'),
        _calendar('join_rule_runs'),
        sa.PrimaryKeyConstraint('target', name=op.f('pk_join_rule_runs')),
    )
    op.create_index('ix_join_rule_runs_project_id', 'join_rule_runs', ['project_id'])
    op.create_index('ix_join_rule_runs_calendar_id', 'join_rule_runs', ['calendar_id'])
    op.create_table(
        'deleted_rule_bots',
        sa.Column('calendar_event_id', sa.String(length=32), nullable=False),
        sa.Column('project_id', sa.String(length=32), nullable=False),
        sa.Column('calendar_id', sa.String(length=32), nullable=False),
        sa.Column('meeting_url', sa.Text(), nullable=True),
        sa.Column('join_at', sa.DateTime(timezone=True), nullable=False),
        _at('created_at'),
        _project('deleted_rule_bots'),
        _calendar('deleted_rule_bots'),
        sa.PrimaryKeyConstraint('calendar_event_id', name=op.f('pk_deleted_rule_bots')),
    )
    op.create_index('ix_deleted_rule_bots_calendar_id', 'deleted_rule_bots', ['calendar_id'])
    op.create_index(
        'ix_deleted_rule_bots_project_by_meeting_url',
        'deleted_rule_bots',
        ['project_id', sa.text('md5(meeting_url)')],
    )
    # Columns without a default: no row is read or written.
    op.add_column('bots', sa.Column('join_rule', sa.Text(), nullable=True))
    op.add_column('bots', sa.Column('join_rule_bot', sa.Text(), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('bots', 'join_rule_bot')
    op.drop_column('bots', 'join_rule')
    for table in ('deleted_rule_bots', 'join_rule_runs', 'event_bot_policies', 'join_rules'):
        op.drop_table(table)
