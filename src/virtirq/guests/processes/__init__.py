"""Guests that no libvirt tells of, by the processes that hold their devices."""
