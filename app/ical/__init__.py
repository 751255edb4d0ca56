"""iCalendar (RFC 5545, 7986): reading feeds, writing objects. No network, no database.

Imports nothing else of the application, so it can be used alone.
"""
