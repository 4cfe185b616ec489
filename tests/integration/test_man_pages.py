#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The manual pages against the programs and the library: verbs, options and exit statuses of diohelper(1) and
# diohelper-tool(1) are those that --help and the programs have, libdiohelper(3) has every exported call with the header's
# prototype, pages that are referred to exist, and mandoc finds nothing to complain about.

import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
BUILD = os.environ.get("BUILD", os.path.join(ROOT, "build"))
HELPER = os.environ.get("DIOHELPER", os.path.join(BUILD, "diohelper"))
TOOL = os.environ.get("DIOHELPER_TOOL", os.path.join(BUILD, "diohelper-tool"))
DOCS = os.path.join(ROOT, "docs")
PAGES = sorted(name for name in os.listdir(DOCS) if re.search(r"\.[1-8]$", name))
# Not pages of ours.
OTHERS = {"capabilities", "gnuplot", "io_uring", "landlock", "memfd_create", "seccomp", "shutdown", "unix", "waitpid"}

complaints = []


def complain(text):
    complaints.append(text)
    print("FAIL:", text)


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def run(*command, status=0):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != status:
        complain(f"{' '.join(command)}: exit status {done.returncode}, the page says {status}")
    return done.stdout


class Page:
    def __init__(self, name):
        self.name = name
        source = read(DOCS, name).replace("\\-", "-").replace("\\&", "").replace("\\c\n", "")
        self.lines = [line for line in source.splitlines() if not line.startswith('.\\"')]

    def section(self, title):
        """The lines of a section, without its heading."""
        if f".SH {title}" not in self.lines:
            complain(f"{self.name} has no section {title}")
            return []
        rest = self.lines[self.lines.index(f".SH {title}") + 1:]
        return rest[:next((i for i, line in enumerate(rest) if line.startswith(".SH ")), len(rest))]

    def tagged(self, title):
        """The paragraphs (.TP) of a section: tag and the beginning of what stands below it, as plain text."""
        lines = self.section(title)
        return [(plain(lines[i + 1]), " ".join(plain(below) for below in lines[i + 2:i + 5]))
                for i, line in enumerate(lines) if line == ".TP"]


def plain(line):
    """A line of roff without its font changes."""
    macro, _, rest = line.partition(" ") if line.startswith(".") else ("", "", line)
    rest = re.sub(r"\\f.", "", rest)
    if re.fullmatch(r"\.([BIR]{2})", macro):
        return "".join(quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', rest))
    return rest.replace('"', "")


def options_in_help(*command):
    return set(re.findall(r"^  (--[a-z-]+)", run(*command, "--help"), re.M))


# ---- the checks ------------------------------------------------------------------------------------------------------


def check_helper():
    page = Page("diohelper.1")
    there = {tag.partition("=")[0] for tag, _ in page.tagged("OPTIONS") if tag.startswith("--")}
    compare("diohelper --help", options_in_help(HELPER), "diohelper.1", there)
    synopsis = "\n".join(page.section("SYNOPSIS"))
    for option in there:
        if option not in synopsis:
            complain(f"diohelper.1: {option} is not in its synopsis")
    check_statuses(page, {0: (HELPER, "--version"), 1: (HELPER, "NAME", "987"), 2: (HELPER, "--no-such-option")})


def check_tool():
    page = Page("diohelper-tool.1")
    verbs = re.findall(r"^  ([a-z]+) +\S", run(TOOL, "--help"), re.M)
    compare("diohelper-tool --help", set(verbs), "diohelper-tool.1", {tag for tag, _ in page.tagged("VERBS")})
    named = re.search(r"run diohelper-tool: ([a-z, ]+)", run(HELPER, "--help"))
    compare("diohelper-tool --help", set(verbs), "diohelper --help", set(named[1].split(", ")) if named else set())
    synopsis = set(re.findall(r"^\.B diohelper-tool ([a-z]+)", "\n".join(page.section("SYNOPSIS")), re.M))
    compare("diohelper-tool --help", set(verbs), "the synopsis of diohelper-tool.1", synopsis)
    for verb in verbs:
        check_verb(page, verb)
    check_statuses(page, {0: (TOOL, "--version"), 1: (TOOL, "inspect", "/nowhere/image"), 2: (TOOL, "no-such-verb")})


def check_verb(page, verb):
    """An option's paragraph begins with the verbs that have it, in brackets. Without that it belongs to all that know it."""
    there, really = set(), options_in_help(TOOL, verb)
    for tag, below in page.tagged("OPTIONS"):
        option = tag.partition("=")[0]
        brackets = re.match(r"\(([a-z, ]+)\)", below)
        if brackets:
            there |= {option} if verb in brackets[1].split(", ") else set()
        elif option in ("--help", "--json", "--helper"):
            there |= {option} & really
        elif option != "--version":
            complain(f"diohelper-tool.1: {tag} does not say which verbs have it")
    compare(f"diohelper-tool {verb} --help", really, "diohelper-tool.1", there)


def compare(left_name, left, right_name, right):
    if not left:
        complain(f"{left_name} names nothing")
    for item in sorted(left - right):
        complain(f"{item}: in {left_name}, but not in {right_name}")
    for item in sorted(right - left):
        complain(f"{item}: in {right_name}, but not in {left_name}")


def check_statuses(page, examples):
    """Each status that the page names, from the program; and no other."""
    named = {tag for tag, _ in page.tagged("EXIT STATUS")}
    compare("the statuses tried here", {str(status) for status in examples}, page.name, named)
    for status, command in examples.items():
        run(*command, status=status)


def prototypes(text):
    flat = re.sub(r"\s+", " ", text)
    return {re.search(r"dioh_\w+", prototype)[0]: prototype
            for prototype in re.findall(r"(?:int|void) dioh_\w+\([^;]*\);", flat)}


def check_library():
    page = Page("libdiohelper.3")
    in_page = prototypes("\n".join(plain(line) for line in page.section("SYNOPSIS")))
    in_header = prototypes(re.sub(r"/\*.*?\*/", "", read(ROOT, "include/diohelper.h"), flags=re.S))
    symbols = subprocess.run(["nm", "-D", "--defined-only", os.path.join(BUILD, "libdiohelper.so.0")],
                             capture_output=True, text=True, check=True).stdout
    exported = set(re.findall(r" T (dioh_\w+)", symbols))
    compare("libdiohelper.so.0", exported, "the synopsis of libdiohelper.3", set(in_page))
    described = "\n".join(page.section("DESCRIPTION"))
    paragraphs = "\n".join(re.findall(r"^\.TP\n(.*)", described, re.M))
    for name in sorted(exported):
        if f"{name} " not in paragraphs and f'{name} "' not in paragraphs:
            complain(f"libdiohelper.3 does not describe {name}")
        if name in in_page and in_page[name] != in_header.get(name):
            complain(f"libdiohelper.3 has {in_page[name]!r}, the header {in_header.get(name)!r}")


def check_references():
    for name in PAGES:
        for other, section in re.findall(r"^\.BR ([a-z_-]+) \((\d)\)", "\n".join(Page(name).lines), re.M):
            if other not in OTHERS and f"{other}.{section}" not in PAGES:
                complain(f"{name} refers to {other}({section}), which is not there")


def check_lint():
    if not shutil.which("mandoc"):
        return False
    for name in PAGES:
        done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", os.path.join(DOCS, name)], capture_output=True,
                              text=True, check=False)
        if done.returncode or done.stdout:
            complain(f"mandoc: {done.stdout}{done.stderr}")
    return True


version = re.search(r'DIOH_VERSION_STRING "(.*)"', read(ROOT, "include/diohelper.h"))[1]
for wanted in ("diohelper.1", "diohelper-tool.1", "libdiohelper.3", "diohelper-protocol.7", "diohelper-image.7"):
    if wanted not in PAGES:
        complain(f"{wanted} is missing")
for name in PAGES:
    if f'"diohelper {version}"' not in read(DOCS, name):
        complain(f"{name} is not of version {version}")
check_helper()
check_tool()
check_library()
check_references()
linted = check_lint()
if complaints:
    sys.exit(1)
if not linted:
    print("skip: pages and programs agree, but there is no mandoc here to check the pages themselves")
    sys.exit(77)
