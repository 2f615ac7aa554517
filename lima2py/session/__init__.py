"""The handle a user holds on a whole system of nodes."""
