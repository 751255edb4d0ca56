"""Shared parts of routes: authentication, sessions, field types, errors, pages, idempotency, OpenAPI."""
