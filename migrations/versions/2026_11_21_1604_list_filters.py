"""list filters

Revision ID: 5a9e3f71c40d
Revises: e87b03c6d1f2
"""

from alembic import op

revision = '5a9e3f71c40d'
down_revision = 'e87b03c6d1f2'
branch_labels = None
depends_on = None

_NEW = {
    'ix_calendars_project_by_platform': 'calendars (project_id, platform, created_at, id)',
    'ix_calendars_project_disconnected': "calendars (project_id, platform, created_at, id) WHERE state = 'disconnected'",
    'ix_bots_project_by_state': 'bots (project_id, state, created_at, id)',
    'ix_bots_project_by_meeting_url': 'bots (project_id, md5(meeting_url), state, created_at, id)',
    'ix_bots_project_by_join_at': 'bots (project_id, join_at)',
}
_OLD = {
    'ix_calendars_project_id_created_at': 'calendars (project_id, created_at, id)',
    'ix_bots_project_id_created_at': 'bots (project_id, created_at, id)',
}


def upgrade() -> None:
    """Writers go on meanwhile. One that was cut off starts again: an index that is half built is dropped first."""
    _replace(_OLD, _NEW)


def downgrade() -> None:
    _replace(_NEW, _OLD)


def _replace(old: dict[str, str], new: dict[str, str]) -> None:
    with op.get_context().autocommit_block():
        op.execute('SET statement_timeout = 0')
        for name, columns in new.items():
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {name}')
            op.execute(f'CREATE INDEX CONCURRENTLY {name} ON {columns}')
        for name in old:
            op.execute(f'DROP INDEX CONCURRENTLY IF EXISTS {name}')
