"""Mails: their words, their bytes, and the two ways to send them, La Suite Messages and SMTP."""
