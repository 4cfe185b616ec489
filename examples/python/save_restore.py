#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Saves 16 MiB of memory and a stream into a container, and loads both back: save_restore.py IMAGE

A manager in a language other than C needs no library: diohelper.py, beside this script, speaks the protocol. The program
diohelper is $DIOHELPER, or found through PATH. Python 3.9 or later, Linux.
"""
import contextlib
import os
import sys

from diohelper import (CONTAINER, DETECT, LOAD, REGION, SAVE, STREAM_ENTRY, Entry, HelperError, Session,
                       pidfd_of_this_process)

HELPER = os.environ.get("DIOHELPER", "diohelper")
MEMORY_BYTES = 16 << 20
PLACE = 5 << 20
RAM = Entry(REGION, 7, b"ram", MEMORY_BYTES)
DEVICES = Entry(STREAM_ENTRY, 0, b"device state")


def memory(name):
    fd = os.memfd_create(name)
    os.ftruncate(fd, MEMORY_BYTES)
    return fd


def attach(session, direction, image, memory_fd, stream_fd):
    """All that the helper will ever have. After the seal it takes no descriptor, and has no privilege left."""
    with pidfd_of_this_process() as pidfd:  # so that it ends with us, whoever has inherited the socket
        session.hello(pidfd=pidfd)
    session.attach_image(direction, buffered=image)
    session.attach_memory(0, memory_fd)
    session.attach_stream(0, stream_fd)
    session.seal()


def pipe_ends():
    reading_end, writing_end = os.pipe()
    return open(reading_end, "rb"), open(writing_end, "wb")


def save(image, memory_fd, device_state):
    reading_end, writing_end = pipe_ends()
    with reading_end, writing_end, Session(HELPER) as session:
        attach(session, SAVE, image, memory_fd, reading_end.fileno())
        reading_end.close()
        session.create_image(CONTAINER, regions=1, streams=1, header_bytes=0)
        session.put_table([RAM, DEVICES])  # from here until FINISH has completed the image says that it is partial
        transfers = [session.save_memory(0, RAM.number, MEMORY_BYTES), session.save_stream(0, DEVICES.number)]
        # A hypervisor does this; the stream ends where the pipe is closed. A helper that failed has closed its end: COMPLETE
        # tells why.
        with contextlib.suppress(BrokenPipeError), writing_end:
            writing_end.write(device_state)
        for transfer in transfers:
            session.complete(transfer)
        session.complete(session.finish())  # durable


def load(image, memory_fd):
    reading_end, writing_end = pipe_ends()
    with reading_end, writing_end, Session(HELPER) as session:
        attach(session, LOAD, image, memory_fd, writing_end.fileno())
        writing_end.close()  # or the pipe would never end
        session.open_image(DETECT)
        print("in the image:", ", ".join(entry.name.decode() for entry in session.get_table()))
        transfers = [session.load_memory(0, RAM.number, MEMORY_BYTES), session.load_stream(0, DEVICES.number)]
        device_state = reading_end.read()
        for transfer in transfers:
            session.complete(transfer)  # every checksum was compared: an error would have been raised
    return device_state


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.splitlines()[0])
    image = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
    before, after = memory("before"), memory("after")
    os.pwrite(before, b"memory", PLACE)
    try:
        save(image, before, b"devices")
        device_state = load(image, after)
    except HelperError as error:
        sys.exit(f"save_restore: {error.text}")
    print("saved and loaded:", os.pread(after, 6, PLACE).decode(), "and", device_state.decode())


main()
