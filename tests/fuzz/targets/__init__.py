"""What is read of others, and what must hold of it. Each module puts its own into `TARGETS`."""

from tests.fuzz.engine import TARGETS
from tests.fuzz.targets import kernel, libvirt, machines, processes, state, surfaces, words

__all__ = ["TARGETS", "kernel", "libvirt", "machines", "processes", "state", "surfaces", "words"]
