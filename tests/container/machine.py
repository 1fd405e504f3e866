"""Whether this machine can make and run images."""

import os
import shutil

PROGRAMS = {
    "catatonit": "catatonit",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "podman": "podman",
    "runc": "runc",
    "setpriv": "util-linux",
    "unshare": "mount",
}
"""What is needed, and the package of Debian that has it."""

# catatonit is the first process of a pod and lies where only podman looks.
_BESIDE_THE_PATH = ("/usr/libexec/podman", "/usr/libexec/catatonit")


def problems() -> list[str]:
    """Say what is missing, with its remedy; nothing if all is there."""
    found = [] if os.geteuid() == 0 else ["you are not root: run it with sudo, or in a machine of its own."]
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_BESIDE_THE_PATH))
    missing = sorted(program for program in PROGRAMS if shutil.which(program, path=path) is None)
    if missing:
        packages = " ".join(sorted({PROGRAMS[program] for program in missing}))
        found.append(f"{', '.join(missing)} cannot be found: install the packages {packages}.")
    return found
