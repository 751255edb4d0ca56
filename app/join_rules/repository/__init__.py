"""SQL of join rules, by subject. No other package imports it."""
