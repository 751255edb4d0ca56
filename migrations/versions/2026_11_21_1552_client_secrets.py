"""client secrets

Revision ID: 9d1f63a8c2b4
Revises: 5e0b7c41d9a6
"""

import sqlalchemy as sa
from alembic import op

revision = '9d1f63a8c2b4'
down_revision = '5e0b7c41d9a6'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table('oauth_client_secrets',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('project_id', sa.String(length=32), nullable=False),
    sa.Column('platform', sa.Text(), nullable=False),
    sa.Column('client_id', sa.Text(), nullable=False),
    sa.Column('sealed', sa.LargeBinary(), nullable=False),
    sa.Column('set_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_oauth_client_secrets_project_id_projects'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_oauth_client_secrets'))
    )
    op.create_index('uq_oauth_client_secrets_client', 'oauth_client_secrets', ['project_id', 'platform', 'client_id'], unique=True)
    # In two steps: with the default at once, every row would be rewritten.
    op.add_column('credentials', sa.Column('client_secret_set_at', sa.DateTime(timezone=True), nullable=True))
    op.alter_column('credentials', 'client_secret_set_at', server_default=sa.text('clock_timestamp()'))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('credentials', 'client_secret_set_at')
    op.drop_table('oauth_client_secrets')
