"""Shows what the other rooms found, decided and did; never decides."""
