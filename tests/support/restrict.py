"""Starts a program under those restrictions of a systemd unit that a process can put upon itself: SystemCallFilter,
RestrictAddressFamilies and MemoryDenyWriteExecute.

    restrict.py UNIT... -- PROGRAM ARGUMENT...
"""

import ctypes
import os
import socket
import subprocess
import sys

ALLOW, DENY = 0x7FFF0000, 0x00050000 | 1
EQUAL = 4
PR_SET_MDWE = 65


class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def groups():
    """The system calls and groups in each group, as this systemd has them."""
    listed, group = {}, None
    for line in subprocess.check_output(["systemd-analyze", "syscall-filter"], text=True).splitlines():
        word = line.strip()
        if line.startswith("@"):
            group = listed.setdefault(word, [])
        elif not line.startswith(" "):
            group = None
        elif group is not None and not word.startswith("#"):
            group.append(word)
    return listed


def members(listed, word):
    return set().union(*(members(listed, inner) for inner in listed[word])) if word.startswith("@") else {word}


def main():
    cut = sys.argv.index("--")
    units, program = sys.argv[1:cut], sys.argv[cut + 1 :]
    settings = [line.rstrip("\n").split("=", 1) for unit in units for line in open(unit) if line[:1].isalpha()]
    listed, allowed, families, sealed = groups(), {"execve"}, [], False
    for key, value in settings:
        if key == "SystemCallFilter":
            words = value.lstrip("~").split()
            found = set().union(*(members(listed, word) for word in words))
            allowed = allowed - found if value.startswith("~") else allowed | found
        elif key == "RestrictAddressFamilies":
            families = [getattr(socket, name) for name in value.split()]
        elif key == "MemoryDenyWriteExecute":
            sealed = value == "yes"
    assert "socket" in allowed and families, "the unit has no such filters"
    libc = ctypes.CDLL(None)
    if sealed and libc.prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0:
        print("SKIPPED: MemoryDenyWriteExecute: this kernel has no PR_SET_MDWE", file=sys.stderr)
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(DENY)))
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue
        if name != "socket":
            assert library.seccomp_rule_add_array(context, ctypes.c_uint32(ALLOW), number, 0, None) == 0, name
            continue
        for family in families:
            equal = Compare(0, EQUAL, family, 0)
            assert library.seccomp_rule_add_array(context, ctypes.c_uint32(ALLOW), number, 1, ctypes.byref(equal)) == 0
    assert library.seccomp_load(context) == 0, "no filter: no_new_privs must be set"
    os.execv(program[0], program)


main()
