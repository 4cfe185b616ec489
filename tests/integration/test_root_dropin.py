#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 120
#
# What takes root to set up, for both programs: a file system that is nearly full, and block devices, whose bytes behind
# what was saved belong to somebody else.

import contextlib
import os
import shutil
import signal
import subprocess
import sys

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import dropin  # noqa: E402 (the path had to be set first)
from dropin import Case, KIB, MIB, Says, Where, content, load, put, save  # noqa: E402

DATA = dropin.random_bytes(3 * MIB + 777)
DEVICE_BYTES = 4 * MIB + 512
OLD = dropin.random_bytes(DEVICE_BYTES, 2)
ANY = Where("any", lambda _: True)
OK = {"status": 0, "error": ""}

directory = dropin.temporary_directory()


def must(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True).stdout.strip()


# ---- a file system that is nearly full ----------------------------------------------------------------------------------

FS_BYTES = 48 * MIB
RESERVED_PERCENT = 25


@contextlib.contextmanager
def small_file_system():
    disk, mount = os.path.join(directory.name, "disk"), os.path.join(directory.name, "mount")
    with open(disk, "wb") as file:
        file.truncate(FS_BYTES)
    must("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", str(RESERVED_PERCENT), disk)
    os.makedirs(mount, exist_ok=True)
    must("mount", "-o", "loop", disk, mount)
    try:
        yield mount
    finally:
        must("umount", mount)
        os.unlink(disk)


def room(mount):
    fs = os.statvfs(mount)
    return fs.f_bavail * fs.f_frsize, fs.f_bfree * fs.f_frsize


def pieces_of(count):
    return [DATA[:MIB]] * (count // MIB) + [DATA[:count % MIB]]


def save_into(how_much, direct):
    def run(program):
        with small_file_system() as mount:
            count = how_much(*room(mount))
            path = os.path.join(mount, "image")
            outcome = save(program, path, pieces_of(count), direct=direct)
            outcome["right"] = outcome.pop("image") == b"".join(pieces_of(count))
            outcome["bytes"] = os.path.getsize(path)
            outcome["free"] = room(mount)[1]
        return outcome
    return run


def full_cases(direct):
    mode = "direct" if direct else "buffered"
    yield Case(f"all that is there for everybody, {mode}", save_into(lambda free, _: free - MIB, direct),
               {**OK, "right": True})
    yield Case(f"into the blocks reserved for root, {mode}",
               save_into(lambda free, with_reserve: (free + with_reserve) // 2, direct), {**OK, "right": True})
    yield Case(f"more than there is, {mode}", save_into(lambda _, with_reserve: with_reserve + 3 * MIB, direct),
               {"status": 1, "error": Says("No space left on device"), "right": False,
                "bytes": Where("no longer than what came", lambda count: count < FS_BYTES + 4 * MIB)})


# ---- block devices ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def device(data, sector_bytes):
    disk = os.path.join(directory.name, "disk")
    put(disk, data)
    loop = must("losetup", "--show", "--sector-size", str(sector_bytes), "-f", disk)
    held = os.open(loop, os.O_RDWR)
    try:
        must("losetup", "-d", loop)  # it goes with the last process that has it open, even if that is killed
        yield loop
    finally:
        os.close(held)
        os.unlink(disk)


def save_to_device(size, position=0, direct=False, sector_bytes=512, device_bytes=DEVICE_BYTES):
    def run(program):
        with device(OLD[:device_bytes], sector_bytes) as loop:
            outcome = save(program, loop, [DATA[:size]], position, direct)
            outcome["image"] = content(loop)
        return outcome
    return run


def load_from_device(position, direct):
    def run(program):
        with device(OLD, 512) as loop:
            return load(program, loop, position, direct)
    return run


def saved(size, position=0, device_bytes=DEVICE_BYTES):
    return OLD[:position] + DATA[:size] + OLD[position + size:device_bytes]


def device_cases():
    padding = "libvirt's pads a direct save to 64 KiB, over what stands behind it"
    unaligned = "libvirt's refuses or fails O_DIRECT that does not begin on a sector"

    for size in (0, 1, 511, 512, 513, 4097, 64 * KIB, MIB + 1, 3 * MIB + 777):
        for direct in (False, True):
            padded = direct and size % (64 * KIB)
            yield Case(f"device, save {size}, {'direct' if direct else 'buffered'}", save_to_device(size, direct=direct),
                       {**OK, "image": saved(size)}, {"image": ANY} if padded else None, padding if padded else None)
    for position in (512, 4096, 0x11921):
        for direct in (False, True):
            strange = direct
            yield Case(f"device, save at {position}, {'direct' if direct else 'buffered'}",
                       save_to_device(MIB + 777, position, direct), {**OK, "image": saved(MIB + 777, position)},
                       {"status": ANY, "error": ANY, "image": ANY} if strange else None, unaligned if strange else None)
            yield Case(f"device, load from {position}, {'direct' if direct else 'buffered'}",
                       load_from_device(position, direct), {**OK, "output": OLD[position:]},
                       {"status": ANY, "error": ANY, "output": ANY} if strange else None, unaligned if strange else None)
    for direct in (False, True):
        mode = "direct" if direct else "buffered"
        even = 3 * MIB
        yield Case(f"device of 4 KiB sectors, save 5001, {mode}", save_to_device(5001, 0, direct, 4096, 4 * MIB),
                   {**OK, "image": saved(5001, 0, 4 * MIB)},
                   {"image": ANY} if direct else None, padding if direct else None)
        yield Case(f"device that is just large enough, {mode}", save_to_device(even, 0, direct, 512, even),
                   {**OK, "image": DATA[:even]})
        yield Case(f"device that ends within a padding, {mode}", save_to_device(MIB + 512, 0, direct, 512, MIB + 512),
                   {**OK, "image": DATA[:MIB + 512]}, {"status": 1, "error": Says(""), "image": ANY} if direct else None,
                   padding if direct else None)
        yield Case(f"device that is too small, {mode}", save_to_device(even + 1, 0, direct, 512, even),
                   {"status": 1, "error": Says("No space left on device|no room"),
                    "image": Where("the device's bytes", lambda b: len(b) == even)})


def have_loop_devices():
    try:
        with device(bytes(MIB), 512):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def main():
    if os.geteuid() != 0:
        dropin.skip("this needs root")
    for command in ("losetup", "mkfs.ext4", "mount", "unshare"):
        if not shutil.which(command):
            dropin.skip(f"there is no {command} here")
    if os.environ.get("DROPIN_NAMESPACE") != "1":
        # Mounts in a namespace of their own go with us, however we end.
        os.execvpe("unshare", ["unshare", "-m", sys.executable, os.path.abspath(__file__), *sys.argv[1:]],
                   {**os.environ, "DROPIN_NAMESPACE": "1"})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was set up is taken down
    if not have_loop_devices():
        dropin.skip("no loop device can be had here")
    cases = [*full_cases(False), *full_cases(True), *device_cases()]
    if len(sys.argv) > 1:
        cases = [case for case in cases if sys.argv[1] in case.name]
    failed = dropin.run_cases(cases, dropin.programs_to_test(directory.name))
    directory.cleanup()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
