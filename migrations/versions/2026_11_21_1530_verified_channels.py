"""verified channels

Revision ID: b7f2c05d9e13
Revises: 8e41c7ba90d2
"""

import sqlalchemy as sa
from alembic import op

revision = 'b7f2c05d9e13'
down_revision = '8e41c7ba90d2'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column('push_channels', sa.Column('verified_at', sa.DateTime(timezone=True), nullable=True))
    # Graph tries the address before it opens a subscription.
    op.execute("UPDATE push_channels SET verified_at = now() WHERE platform = 'microsoft' AND state = 'open'")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column('push_channels', 'verified_at')
