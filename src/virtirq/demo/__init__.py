"""One host, recorded with ``virtirq record`` on a running kernel, as package data."""
