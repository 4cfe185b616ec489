#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 180
#
# Every block of commands in the pages for people says whether it is run here. A block is what stands between ``` lines, or is
# indented by four blanks; it is one of commands if it is marked sh or console, or if a line of it begins with one of the
# programs below. In front of it stands
#
#   <!-- run -->               it is run here, in a directory of its own with what make_sandbox() puts there, by bash -e; of a
#                              block with prompts the lines with "$ "
#   <!-- not run: REASON -->   it is not, and why
#
# A block without one of these fails.

import os
import re
import signal
import subprocess
import sys
import tempfile

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
BUILD = os.environ.get("BUILD", os.path.join(ROOT, "build"))
DIRECTORIES = ["", "docs", "examples", "selinux"]
PROGRAMS = ("apt-get|aa-[a-z]+|cc|chcon|curl|dd|dioh-[a-z]+|diohelper|diohelper-tool|dnf|dpkg|dpkg-[a-z]+|find|fio|gcc|git|grep|"
            "ls|make|matchpathcon|mount|ps|python3|qemu-[a-z0-9_-]+|restorecon|semanage|semodule|sesearch|sh|strace|sudo|sysctl|"
            "systemctl|systemd-run|virsh|[./a-z-]+\\.(sh|py)")
COMMAND = re.compile(rf"^\s*(\$ \S|([A-Z_]+=\S* )*({PROGRAMS})\s)")
MARK = re.compile(r"<!-- (run|not run: (\S.*\S)) -->")
TIMEOUT_S = 120

complaints = []


def complain(text):
    complaints.append(text)
    print("FAIL:", text)


def pages():
    for directory in DIRECTORIES:
        for name in sorted(os.listdir(os.path.join(ROOT, directory))):
            if name.endswith(".md"):
                yield os.path.join(directory, name)


def mark_before(lines, first):
    """The mark in the last line with something in it above a block."""
    while first > 0 and not lines[first - 1].strip():
        first -= 1
    return MARK.fullmatch(lines[first - 1].strip()) if first > 0 else None


def blocks(page):
    """The blocks of commands: number of the first line, mark, lines."""
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        lines = file.read().splitlines()
    at = 0
    while at < len(lines):
        fence = re.fullmatch(r"\s*```(\w*)", lines[at])
        end = at + 1
        if fence:
            while end < len(lines) and not re.fullmatch(r"\s*```", lines[end]):
                end += 1
            some, language = lines[at + 1:end], fence[1]
            end += 1
        elif lines[at].startswith("    ") and at > 0 and (not lines[at - 1].strip() or MARK.fullmatch(lines[at - 1].strip())):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            some, language = lines[at:end], ""
        else:
            at += 1
            continue
        if language in ("sh", "console") or (not language and any(COMMAND.match(line) for line in some)):
            yield at + 1, mark_before(lines, at), some
        at = end


def make_sandbox(directory):
    """What the blocks may take for granted: a complete image by the names that the pages use, and a directory DIR."""
    image = os.path.join(directory, "guest.dioh")
    subprocess.run([os.path.join(BUILD, "dioh-minimal"), image], env=environment(directory), check=True,
                   stdout=subprocess.DEVNULL)
    for name in ("IMAGE", "guest.img"):
        os.link(image, os.path.join(directory, name))
    os.mkdir(os.path.join(directory, "DIR"))


def environment(directory):
    path = f"{BUILD}:{os.path.join(ROOT, 'examples')}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": directory, "TMPDIR": directory, "PYTHONDONTWRITEBYTECODE": "1"}


def script_of(lines):
    prompts = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    return "\n".join(prompts or lines)


def run(place, lines):
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        make_sandbox(directory)
        process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", script_of(lines)], cwd=directory,
                                   env=environment(directory), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    if process.returncode != 0:
        complain(f"{place}: exit status {process.returncode}:\n{output}")
    else:
        print(f"ok    {place}")


counts = {"run": 0, "not run": 0}
for page in pages():
    for line, mark, lines in blocks(page):
        place = f"{page}:{line}"
        if not mark:
            complain(f"{place}: neither <!-- run --> nor <!-- not run: why --> stands before this block")
        elif mark[2]:
            counts["not run"] += 1
            print(f"not   {place}: {mark[2]}")
        else:
            counts["run"] += 1
            run(place, lines)

if not counts["run"]:
    complain("no block was run")
print(f"{counts['run']} blocks run, {counts['not run']} not")
sys.exit(1 if complaints else 0)
