"""Pins the host interrupts of passed-through devices to the CPUs of their guests' vCPUs."""

__version__ = "0.1.0"
