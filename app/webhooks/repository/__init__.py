"""SQL of endpoints and their deliveries, by subject. No other package imports it.

Order of locks, everywhere: the endpoint's row first, then its deliveries. Announcing locks endpoints with
FOR KEY SHARE, so that none is deleted meanwhile; claiming locks them with FOR NO KEY UPDATE. Neither waits for the
other, so a long sync transaction never holds up the workers.
"""
