"""``virtirq top``: how often each interrupt is taken, and where. All but two files are pure."""
