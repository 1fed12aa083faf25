"""The only room that changes the machine, always with the journal written first."""
