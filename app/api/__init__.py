"""What all features' routes share: who calls, sessions, input models, error answers, cursors, idempotency."""
