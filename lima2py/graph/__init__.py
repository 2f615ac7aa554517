"""Tasks wired by name: definition (YAML), plan (made concrete), flow (blocks through it)."""
