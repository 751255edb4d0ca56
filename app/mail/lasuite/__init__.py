"""Client of La Suite Messages, which has the mailboxes of calendars' owners."""
