"""reply of guest

Revision ID: 4b8e61d0c7a5
Revises: b7f2c05d9e13
"""

import sqlalchemy as sa
from alembic import op

revision = '4b8e61d0c7a5'
down_revision = 'b7f2c05d9e13'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('invitation_mails', sa.Column('replying_key', sa.Text(), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('invitation_mails', 'replying_key')
