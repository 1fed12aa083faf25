"""Reads this machine's kernel, all of it through `virtirq.host.fs.HostFs`; changes nothing."""
