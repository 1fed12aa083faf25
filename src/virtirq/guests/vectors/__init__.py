"""Which vCPU a guest aims each of its vectors at."""
