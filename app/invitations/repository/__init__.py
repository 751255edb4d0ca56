"""SQL of the outbox of mails: writing, the log, claims of due mails, and lanes."""
