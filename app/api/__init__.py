"""Shared parts of all routes: authentication, sessions, field types, errors, pages, idempotency, OpenAPI."""
