"""iCalendar: reading feeds and writing files (RFC 5545, 7986). Pure functions: no network, no database."""
