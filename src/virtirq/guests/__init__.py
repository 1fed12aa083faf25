"""Knows who runs here, with which vCPUs and which devices; changes nothing."""
