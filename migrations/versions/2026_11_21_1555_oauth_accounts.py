"""oauth accounts

Revision ID: 5d0e8b4c61f7
Revises: 9d1f63a8c2b4
"""

import sqlalchemy as sa
from alembic import op

revision = '5d0e8b4c61f7'
down_revision = '9d1f63a8c2b4'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('credentials', sa.Column('account_id', sa.String(), nullable=True))
    op.add_column('oauth_sessions', sa.Column('same_account', sa.Boolean(), server_default=sa.text('false'), nullable=False))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('oauth_sessions', 'same_account')
    op.drop_column('credentials', 'account_id')
