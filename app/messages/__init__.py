"""Messages: the mailboxes that send, the mails, and the ways out (contract/messages.md)."""
