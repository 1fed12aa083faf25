"""The service: hears what happens, decides what has to be looked at, and sleeps."""
