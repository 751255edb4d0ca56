"""Invitations: the outbox of mails to guests, its sender, and its log."""
