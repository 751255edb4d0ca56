"""key uses

Revision ID: 7d20c4b9e6a1
Revises: 5e8d1f7a30c4
"""

from alembic import op
import sqlalchemy as sa

revision = '7d20c4b9e6a1'
down_revision = '5e8d1f7a30c4'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('api_keys', sa.Column('last_used_at', sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column('api_keys', 'last_used_at')
