"""What the lab's image is made of. Any change here makes a new image."""

from __future__ import annotations

SUITE = "trixie"

PACKAGES = (
    # The generic kernel: the cloud one has no e1000e, igb or igbvf.
    "linux-image-amd64",
    "kmod",
    "udev",
    "dbus",
    "systemd-sysv",
    "busybox-static",
    "iproute2",
    "iputils-ping",
    "procps",
    "util-linux",
    "pciutils",
    "numactl",
    "python3",
    "python3-pip",
    "python3-libvirt",
    "libvirt-daemon-system",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "apparmor",
    "libxml2-utils",  # virt-xml-validate calls xmllint
    "qemu-system-x86",
    "qemu-utils",
    "irqbalance",
    # What virtirq's own package depends on: the host has no network to fetch it from.
    "python3-cattr",
    "python3-defusedxml",
    "python3-prometheus-client",
    "python3-rich",
    "python3-shtab",
)

# What the lab's host runs in. QEMU before 10.2 changes interrupt_request without a lock where a
# nested guest is entered and left (helper_vmrun(), do_vmexit()): an interrupt that comes
# meanwhile, such as a timer's, is lost, and a processor or the whole host hangs. igb needs 8.
EMULATOR = ("qemu-system-x86", "qemu-utils")
EMULATOR_SUITE = f"{SUITE}-backports"

# Nothing that is only for reading: it would double the image.
EXCLUDES = (
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
)

# Of AppArmor's profiles only libvirt's: an emulated boot compiles each of them.
APPARMOR = "/etc/apparmor.d"
KEPT_PROFILES = "usr.*libvirt*"

IMAGE_SIZE = "3G"  # sparse: what is not used takes no room

# Modules of the two initramfs files. crc32c_generic is ext4's, a soft dependency only.
L1_MODULES = ("virtio_blk", "crc32c_generic", "ext4")
L2_MODULES = ("nvme", "e1000e", "igb", "igbvf", "virtio_net")
