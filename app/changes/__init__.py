"""Following changes of events: pages by cursor, waiting for the next change, and Server-Sent Events."""
