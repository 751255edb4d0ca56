"""When calendars are busy, and when people can meet."""
