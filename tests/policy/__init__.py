"""Tests of the room that decides; one module for each of src/virtirq/policy."""
