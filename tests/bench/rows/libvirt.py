# SPDX-License-Identifier: LGPL-2.1-or-later
"""virsh save and restore: libvirt's five ways, the drop-in, and an image composed by diohelper."""
import os
import sys

import harness
from harness import Experiment

MIB_DEFAULT = 1024
SCRIPT = os.path.join(harness.HERE, "libvirt.sh")
SKIPPED = "exit status 77"
DIRECT = "--bypass-cache"
CHANNELS = f"{DIRECT} --parallel-channels 8"
WAYS = { # options of save, of restore
    "legacy": ("--image-format raw", ""),
    "mapped-ram": ("--image-format sparse", ""),
    "legacy, bypass-cache": (f"--image-format raw {DIRECT}", DIRECT),
    "mapped-ram, bypass-cache": (f"--image-format sparse {DIRECT}", DIRECT),
    "mapped-ram, bypass-cache, 8 channels": (f"--image-format sparse {CHANNELS}", CHANNELS),
    "legacy, drop-in": ("--image-format raw", ""),
    "legacy, bypass-cache, drop-in": (f"--image-format raw {DIRECT}", DIRECT),
    "mapped-ram composed by diohelper": (None, CHANNELS),
}


def commands(save, restore):
    for name, (save_options, restore_options) in WAYS.items():
        save.command(name, f"virsh save {save_options} GUEST $DIR/image; sync $DIR/image" if save_options else
                     "virsh suspend GUEST; diohelper serve composes $DIR/image; virsh destroy GUEST")
        restore.command(name, f"virsh restore $DIR/image {restore_options}".strip())


def measure(bench):
    mib = bench.size(MIB_DEFAULT)
    save = Experiment(f"virsh save of a {mib} MiB guest, two thirds of its memory data", mib=mib)
    restore = Experiment("virsh restore of that guest", mib=mib)
    commands(save, restore)
    environment = dict(os.environ, BUILD=harness.BUILD, DIOHELPER=harness.HELPER, DIOHELPER_TOOL=harness.TOOL,
                       TMPDIR=bench.directory)
    try:
        said = harness.run([SCRIPT, str(bench.rounds), str(mib)], seconds_max=bench.rounds * 300, env=environment)
    except harness.Failed as why:
        if SKIPPED in str(why):
            raise harness.Unavailable("this needs root and a libvirt: " + str(why).rpartition("skip: ")[2]) from None
        raise
    print(file=sys.stderr)
    for words in (line.split("\t") for line in said.splitlines()):
        if words[0] == "sample":
            (save if words[2] == "save" else restore).add(words[1], harness.sample(mib, float(words[3])))
        elif words[0] == "image":
            save.about["image_mib"] = int(words[1])
    return {"virsh-save": save, "virsh-restore": restore}
