"""Programs that mean harm, for tests of the sandbox."""
# ruff: noqa: E501

import os
import textwrap
from typing import NamedTuple


class Hostile(NamedTuple):
    """A program, how it may end, and what it must have found out, in its own words."""

    code: str
    status: str
    says: str = ""
    timeout_s: float = 30.0


def refused(*statements: str) -> str:
    """Return a program that tries statements and says which of them worked."""
    lines = [
        "import os, ctypes, socket, signal, subprocess, sys",
        "libc = ctypes.CDLL(None, use_errno=True)",
        "worked = []",
    ]
    for number, statement in enumerate(statements):
        lines += [
            "try:",
            textwrap.indent(statement, "    "),
            f"    worked.append({number})",
            "except (OSError, subprocess.SubprocessError, ValueError): pass",
        ]
    return "\n".join([*lines, "print('worked:', worked)"])


def call(number: int, *arguments: object) -> str:
    """Return a statement that raises where a system call fails."""
    words = ", ".join(map(str, (number, *arguments)))
    return f"if libc.syscall({words}) < 0: raise OSError(ctypes.get_errno(), 'refused')"


NONE = r"worked: \[\]"
HOSTILE = {
    "fork bomb": Hostile("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", "timed_out", timeout_s=2),
    "thread bomb": Hostile(
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()", "error|timed_out",
        "can't start new thread",
        timeout_s=3,
    ),
    "memory bomb": Hostile("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory"),
    "one huge allocation": Hostile("x = bytearray(1 << 40)", "memory"),
    "memory of many processes": Hostile(
        "import os, time\nfor _ in range(8):\n  if not os.fork():\n    x = bytearray(100 << 20); time.sleep(60)\ntime.sleep(60)",
        "memory",
    ),
    "shared memory": Hostile(
        "import mmap\nkept = []\nfor _ in range(64):\n  m = mmap.mmap(-1, 16 << 20); m.write(b'x' * (16 << 20)); kept.append(m)",
        "memory",
    ),
    "memory in files of no file system": Hostile(refused("os.memfd_create('x')"), "completed", NONE),
    "fill the disk": Hostile(
        "f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", "error", "File too large|No space left"
    ),
    "fill the disk with many files": Hostile(
        "n = 0\nwhile True:\n  open(f'f{n}', 'wb').write(b'x' * (8 << 20)); n += 1", "error", "No space left"
    ),
    "fill the disk with inodes": Hostile(
        "import os\nfor n in range(1 << 20): os.mkdir(f'd{n}')", "error", "No space left"
    ),
    "write where it must not": Hostile(
        refused(*(f"open('{p}/x', 'w')" for p in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/proc/sys", "/lib"))),
        "completed", NONE,
    ),
    "read other people's files": Hostile(
        refused(*(f"print(os.listdir('{p}') or 1/0)" for p in ("/home", "/var", "/root/.ssh", "/boot", "/mnt", "/sys")),
                *(f"open('{p}').read()" for p in ("/etc/shadow", "/etc/ssh/sshd_config", "/etc/environment", "@CANARY@"))),
        "completed", NONE,
    ),
    "read the parent's environment": Hostile(
        refused("open('/proc/1/environ').read()", "open('/proc/1/mem', 'rb')", "os.listdir('/proc/1/fd')",
                "os.listdir('/proc/1/root/')", "os.listdir('/proc/1/cwd/')", f"open('/proc/{os.getpid()}/environ').read()"),
        "completed", NONE,
    ),
    "its own environment": Hostile("import os\nprint(dict(os.environ))", "completed", "sandbox"),
    "other processes": Hostile(
        "import os\nprint('seen:', sorted(p for p in os.listdir('/proc') if p.isdigit()))", "completed", r"seen: \['1', '2'\]"
    ),
    "network": Hostile(
        refused("socket.create_connection(('127.0.0.1', @PORT@), 1)", "socket.create_connection(('192.0.2.1', 80), 1)",
                "socket.getaddrinfo('localhost.example', 80)"),
        "completed", NONE,
    ),
    "sockets that ignore network namespaces": Hostile(
        refused(*(f"socket.socket({family}, socket.SOCK_DGRAM)" for family in (16, 17, 38, 40)),
                "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('\\0nemo-skills-port-20000')"),
        "completed", NONE,
    ),
    "kill the parent": Hostile(
        "import os, signal\nfor s in range(1, 65):\n  try: os.kill(1, s)\n  except OSError: pass\n"
        "try: os.kill(os.getppid(), 9)\nexcept OSError: pass\nprint('still here')",
        "completed", "still here",
    ),
    "kill everybody": Hostile("import os\nos.kill(-1, 9)", "error", "No such process"),
    "kill its own group": Hostile("import os\nos.killpg(0, 9)", "error"),
    "endless output": Hostile("while True: print('x' * 10000)", "output_limit", timeout_s=60),
    "endless errors": Hostile("import os\nwhile True: os.write(2, b'x' * 60000)", "output_limit", timeout_s=60),
    "symbolic links": Hostile(
        refused("os.symlink('/proc/1/environ', 'a'); open('a').read()", "os.symlink('/etc/shadow', 'b'); open('b').read()",
                "os.symlink('@CANARY@', 'c'); open('c').read()", "os.symlink('/usr', 'd'); open('d/x', 'w')",
                "os.link('/etc/passwd', 'e')"),
        "completed", NONE,
    ),
    "way up and out": Hostile(
        refused("os.chroot('.')", "os.chdir('../' * 50); os.listdir('home')", "open('/proc/self/cwd/../../../home')",
                "os.open('/proc/1/root/etc/shadow', 0)", call(304, 0, 0, 0)),
        "completed", NONE,
    ),
    "trace": Hostile(refused(call(101, 16, 1, 0, 0), call(101, 0, 0, 0, 0), call(310, 1, 0, 0, 0, 0, 0)), "completed", NONE),
    "mount": Hostile(
        refused("if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None): raise OSError", "if libc.umount2(b'/tmp', 2): raise OSError",
                "if libc.mount(b'none', b'/', None, 32 | 4096, None): raise OSError", call(428, -100, 0, 1)),
        "completed", NONE,
    ),
    "namespaces of its own": Hostile(
        refused("if libc.unshare(0x10000000): raise OSError", "if libc.unshare(0x20000): raise OSError",
                call(56, 0x10000000 | 17, 0, 0, 0, 0), "subprocess.run(['unshare', '-U', 'true'], check=True)"),
        "completed", NONE,
    ),
    "become root": Hostile(
        refused("os.setuid(0)", "os.setgid(0)", "os.setgroups([0])", "os.seteuid(65534)",
                "os.chown('/tmp', 0, 0)", "os.mknod('disk', 0o60666, os.makedev(254, 0))",
                "assert b'uid=0' in subprocess.run(['su', '-c', 'id'], capture_output=True, input=b'').stdout or 1 / 0")
        .replace("ValueError)", "ValueError, ZeroDivisionError)"),
        "completed", NONE,
    ),
    "signal tricks": Hostile(
        "import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass", "timed_out", timeout_s=1
    ),
    "stop itself": Hostile("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timed_out", timeout_s=1),
    "daemon": Hostile(
        "import os, time\nif not os.fork():\n  os.setsid()\n  if not os.fork():\n    os.closerange(0, 256)\n    time.sleep(600)\n"
        "  os._exit(0)\nprint('left one behind')",
        "completed", "left one behind",
    ),
    "higher limits": Hostile(
        "import resource\nfor r in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):\n"
        "  try: resource.setrlimit(r, (-1, -1)); print('raised', r)\n  except (OSError, ValueError): pass\nprint('done')",
        "completed", r"\Adone",
    ),
    "higher priority": Hostile(refused("os.nice(-20)", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"), "completed", NONE),
    "close all files": Hostile("import os\nos.closerange(0, 256)\nwhile True: pass", "timed_out", timeout_s=1),
    "crash": Hostile("import ctypes\nctypes.string_at(0)", "error"),
    "endless recursion": Hostile("import sys\nsys.setrecursionlimit(10**9)\nf = lambda x: f(x) + str(x)\neval('f(1)')", "error|memory|timed_out"),
    "kernel doors": Hostile(
        refused(call(321, 0, 0, 0), call(298, 0, 0, 0, 0, 0), call(425, 1, 0), call(323, 0), call(250, 0, 0), call(29, 0, 4096, 0o1600)),
        "completed", NONE,
    ),
    "clock and machine": Hostile(
        refused("os.sync(); open('/proc/sysrq-trigger', 'w').write('b')", "socket.sethostname('x')", call(169, 0, 0, 0),
                "import time; time.clock_settime(0, 0)", "open('/dev/kmsg', 'w')", "open('/dev/vda', 'rb')", "open('/proc/kcore', 'rb')"),
        "completed", NONE,
    ),
    "deep folders": Hostile(
        "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\nprint('deep')", "completed", "deep"
    ),
}  # fmt: skip
