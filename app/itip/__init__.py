"""iCalendar: reading feeds (RFC 5545, 7986). Pure functions: no network, no database."""
