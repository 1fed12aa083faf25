"""``virtirq events``: what was moved, by whom, when and why."""
