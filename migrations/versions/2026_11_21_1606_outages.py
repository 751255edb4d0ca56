"""outages

Revision ID: 5e8d1f7a30c4
Revises: 5a9e3f71c40d
"""

import sqlalchemy as sa
from alembic import op

revision = '5e8d1f7a30c4'
down_revision = '5a9e3f71c40d'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('calendars', sa.Column('sync_failure_message', sa.Text(), nullable=True))
    op.add_column('calendars', sa.Column('sync_failure_code_since', sa.DateTime(timezone=True), nullable=True))
    op.add_column('calendars', sa.Column('sync_failure_code_count', sa.Integer(), server_default='0', nullable=False))
    op.add_column('calendars', sa.Column('sync_forced_before', sa.DateTime(timezone=True), nullable=True))
    op.add_column('calendars', sa.Column('cursor_expired_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('calendars', sa.Column('held_back_ids', sa.ARRAY(sa.Text()), nullable=True))
    op.add_column('calendars', sa.Column('held_back_since', sa.DateTime(timezone=True), nullable=True))
    op.add_column('calendars', sa.Column('outage_scope', sa.Text(), nullable=True))
    # No row has a scope yet: this reads the table once, and writes nothing.
    op.create_index('ix_calendars_outage', 'calendars', ['outage_scope', 'project_id', 'id'], unique=False, postgresql_where=sa.text('outage_scope IS NOT NULL'))
    op.create_table('sync_breakers',
    sa.Column('scope', sa.Text(), nullable=False),
    sa.Column('opened_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('outage_since', sa.DateTime(timezone=True), nullable=True),
    sa.Column('next_probe_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('probe_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('probe_project_id', sa.Text(), nullable=True),
    sa.Column('closed_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('release_until', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('scope', name=op.f('pk_sync_breakers'))
    )
    op.create_table('sync_votes',
    sa.Column('scope', sa.Text(), nullable=False),
    sa.Column('project_id', sa.String(length=32), nullable=False),
    sa.Column('failing', sa.Integer(), server_default='0', nullable=False),
    sa.Column('failing_since', sa.DateTime(timezone=True), nullable=True),
    sa.Column('voted_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_sync_votes_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('scope', 'project_id', name=op.f('pk_sync_votes'))
    )
    op.create_index(op.f('ix_sync_votes_project_id'), 'sync_votes', ['project_id'], unique=False)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table('sync_votes')
    op.drop_table('sync_breakers')
    op.drop_index('ix_calendars_outage', table_name='calendars')
    op.drop_column('calendars', 'outage_scope')
    op.drop_column('calendars', 'held_back_since')
    op.drop_column('calendars', 'held_back_ids')
    op.drop_column('calendars', 'cursor_expired_at')
    op.drop_column('calendars', 'sync_forced_before')
    op.drop_column('calendars', 'sync_failure_code_count')
    op.drop_column('calendars', 'sync_failure_code_since')
    op.drop_column('calendars', 'sync_failure_message')
