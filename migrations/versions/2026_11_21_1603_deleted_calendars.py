"""deleted calendars

Revision ID: e87b03c6d1f2
Revises: c1d75a20e6b4
"""

import sqlalchemy as sa
from alembic import op

revision = 'e87b03c6d1f2'
down_revision = 'c1d75a20e6b4'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The trigger, and not the application, notes which calendars are gone: whoever deletes one, also older code."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        'deleted_calendars',
        sa.Column('calendar_id', sa.String(length=32), nullable=False),
        sa.Column('project_id', sa.String(length=32), nullable=False),
        sa.Column('deleted_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
        sa.PrimaryKeyConstraint('calendar_id', name=op.f('pk_deleted_calendars')),
    )
    op.create_index(op.f('ix_deleted_calendars_project_id'), 'deleted_calendars', ['project_id'], unique=False)
    op.execute(
        """
        CREATE FUNCTION note_deleted_calendar() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO deleted_calendars (calendar_id, project_id) VALUES (OLD.id, OLD.project_id)
            ON CONFLICT DO NOTHING;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        'CREATE TRIGGER note_deleted_calendar AFTER DELETE ON calendars '
        'FOR EACH ROW EXECUTE FUNCTION note_deleted_calendar()'
    )
    op.drop_constraint('fk_calendar_events_calendar_id_calendars', 'calendar_events', type_='foreignkey')


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute('DELETE FROM calendar_events WHERE calendar_id IN (SELECT calendar_id FROM deleted_calendars)')
    op.create_foreign_key(
        op.f('fk_calendar_events_calendar_id_calendars'),
        'calendar_events',
        'calendars',
        ['calendar_id'],
        ['id'],
        ondelete='CASCADE',
    )
    op.execute('DROP TRIGGER note_deleted_calendar ON calendars')
    op.execute('DROP FUNCTION note_deleted_calendar()')
    op.drop_table('deleted_calendars')
