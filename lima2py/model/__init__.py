"""A discrete-event model of a system: what it would do, before anybody buys it."""
