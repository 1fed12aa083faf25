"""Guests as libvirt has them: its connection, its events, its domain XML."""
