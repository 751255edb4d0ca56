"""OAuth apps and sessions

Revision ID: 618dd2cb81a0
Revises: 980d23a8ebc1
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '618dd2cb81a0'
down_revision = '980d23a8ebc1'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table('oauth_apps',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('project_id', sa.String(length=32), nullable=False),
    sa.Column('platform', sa.Text(), nullable=False),
    sa.Column('client_id', sa.Text(), nullable=False),
    sa.Column('sealed', sa.LargeBinary(), nullable=False),
    sa.Column('redirect_uris', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("platform IN ('google', 'microsoft')", name=op.f('ck_oauth_apps_platform')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_oauth_apps_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_oauth_apps'))
    )
    op.create_index('uq_oauth_apps_project_id_platform', 'oauth_apps', ['project_id', 'platform'], unique=True)
    op.create_table('oauth_sessions',
    sa.Column('state_sha256', sa.Text(), nullable=False),
    sa.Column('project_id', sa.String(length=32), nullable=False),
    sa.Column('app_id', sa.String(length=32), nullable=False),
    sa.Column('platform', sa.Text(), nullable=False),
    sa.Column('redirect_uri', sa.Text(), nullable=False),
    sa.Column('deduplication_key', sa.Text(), nullable=True),
    sa.Column('metadata', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('platform_uuid', sa.Text(), nullable=True),
    sa.Column('login_hint', sa.Text(), nullable=True),
    sa.Column('sealed', sa.LargeBinary(), nullable=False),
    sa.Column('consent_asked', sa.Boolean(), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('used_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['app_id'], ['oauth_apps.id'], name=op.f('fk_oauth_sessions_app_id_oauth_apps'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_oauth_sessions_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('state_sha256', name=op.f('pk_oauth_sessions'))
    )
    op.create_index(op.f('ix_oauth_sessions_app_id'), 'oauth_sessions', ['app_id'], unique=False)
    op.create_index('ix_oauth_sessions_project_id_expires_at', 'oauth_sessions', ['project_id', 'expires_at'], unique=False)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index('ix_oauth_sessions_project_id_expires_at', table_name='oauth_sessions')
    op.drop_index(op.f('ix_oauth_sessions_app_id'), table_name='oauth_sessions')
    op.drop_table('oauth_sessions')
    op.drop_index('uq_oauth_apps_project_id_platform', table_name='oauth_apps')
    op.drop_table('oauth_apps')
