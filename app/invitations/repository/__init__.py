"""SQL of the outbox of mails: its rows, its log, the claims of due mails, and the lanes that they wait in."""
