"""reply of guest

Revision ID: 4b8e61d0c7a5
Revises: 5d0e8b4c61f7
"""

import sqlalchemy as sa
from alembic import op

revision = '4b8e61d0c7a5'
down_revision = '5d0e8b4c61f7'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('invitation_mails', sa.Column('replying_key', sa.Text(), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('invitation_mails', 'replying_key')
