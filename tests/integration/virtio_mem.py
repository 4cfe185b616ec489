# SPDX-License-Identifier: LGPL-2.1-or-later
"""A driver for QEMU's virtio-mem, from outside: plugs memory into a stopped guest that has no driver of its own.

It speaks to the device by way of qtest, as a kernel would by its registers; where its queue stood the guest's memory is
put back, and the device is reset, which leaves the memory plugged in.
"""
import struct

ACKNOWLEDGE_AND_DRIVER, FEATURES_OK, DRIVER_OK = 3, 8, 4
UNPLUGGED_INACCESSIBLE, VERSION_1 = 1 << 1, 1 << 32
COMMON, NOTIFY, DEVICE = 1, 2, 4  # the virtio capabilities' types
# Where it all stands in the guest's memory for a while: the queue first.
PLACE = 32 << 20
AVAILABLE, USED, REQUEST, RESPONSE, PLACE_BYTES = 0x1000, 0x2000, 0x3000, 0x3100, 0x4000


class Device:
    """The virtio PCI device of a slot, with its registers where the firmware has put them."""

    def __init__(self, guest, slot):
        self.guest, self.slot = guest, slot
        self._configure(4, self._configuration(4) | 4)  # it may access memory
        self.at, at = {}, self._configuration(0x34) & 0xff
        while at:
            head = self._configuration(at)
            if head & 0xff == 9:  # vendor specific: virtio's
                start = self._bar(self._configuration(at + 4) & 0xff) + self._configuration(at + 8)
                self.at.setdefault(head >> 24, start)
            at = head >> 8 & 0xff

    def _select(self, register):
        self.guest.qtest(f"outl 0xcf8 {1 << 31 | self.slot << 11 | register:#x}")

    def _configuration(self, register):
        self._select(register)
        return int(self.guest.qtest("inl 0xcfc"), 0)

    def _configure(self, register, value):
        self._select(register)
        self.guest.qtest(f"outl 0xcfc {value:#x}")

    def _bar(self, number):
        low, high = (self._configuration(0x10 + 4 * (number + half)) for half in (0, 1))
        return (low & ~15) | (high << 32 if low & 4 else 0)

    def read(self, size, part, offset):
        return int(self.guest.qtest(f"read{size} {self.at[part] + offset:#x}"), 0)

    def write(self, size, part, offset, value):
        self.guest.qtest(f"write{size} {self.at[part] + offset:#x} {value:#x}")


def plug(guest, slot, count):
    """Plugs in so many bytes, the first ones of the device's memory. Returns where in the guest they stand."""
    device = Device(guest, slot)
    was = guest.peek(PLACE, PLACE_BYTES)
    guest.poke(PLACE, bytes(PLACE_BYTES))
    _start(device)
    block, address = device.read("q", DEVICE, 0), device.read("q", DEVICE, 16)
    guest.poke(PLACE + REQUEST, struct.pack("<H6xQH6x", 0, address, count // block))
    guest.poke(PLACE, struct.pack("<QIHHQIHH", PLACE + REQUEST, 24, 1, 1, PLACE + RESPONSE, 10, 2, 0))
    guest.poke(PLACE + RESPONSE, b"\xff" * 10)
    guest.poke(PLACE + AVAILABLE, struct.pack("<HHH", 0, 1, 0))
    device.write("w", NOTIFY, 0, 0)
    response = guest.peek(PLACE + RESPONSE, 2)
    assert response == b"\0\0", f"virtio-mem does not plug {count} bytes in: {response}"
    assert device.read("q", DEVICE, 40) == count
    device.write("b", COMMON, 0x14, 0)
    guest.poke(PLACE, was)
    return address


def _start(device):
    for status in (0, ACKNOWLEDGE_AND_DRIVER):
        device.write("b", COMMON, 0x14, status)
    features = UNPLUGGED_INACCESSIBLE | VERSION_1
    for half in (0, 1):
        device.write("l", COMMON, 0x8, half)
        device.write("l", COMMON, 0xc, features >> 32 * half & 0xffffffff)
    device.write("b", COMMON, 0x14, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK)
    device.write("w", COMMON, 0x16, 0)
    for register, place in ((0x20, 0), (0x28, AVAILABLE), (0x30, USED)):
        device.write("l", COMMON, register, PLACE + place)
        device.write("l", COMMON, register + 4, 0)
    device.write("w", COMMON, 0x1c, 1)
    device.write("b", COMMON, 0x14, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK | DRIVER_OK)
