"""A host with passthrough devices inside QEMU, without KVM: see virtirq work, risk nothing.

`lab.quick` boots this machine's files under a stock kernel in seconds; `lab.full` is an
image of its own with libvirt and nested guests. `python -m lab` is a person's way in.
"""
