"""A real OpenSSH server on loopback, for a user of its own: keys, configuration and cache lie in one folder."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

HOST = "board"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/sbin")


def why_none() -> str | None:
    """Return why no server can be had here, None where it can."""
    if SSHD is None:
        return "sshd is not installed: on Debian and Ubuntu 'apt-get install openssh-server'"
    if shutil.which("ssh") is None:
        return "ssh is not installed: on Debian and Ubuntu 'apt-get install openssh-client'"
    return None


class SshServer:
    """A server whose one host is called ``board``; ``folder / 'bin'`` is put first on PATH to reach it.

    Sessions run with ``variables``; ``forced`` is a command that runs in place of each, as sshd's ForceCommand has it.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None, forced: str | None = None) -> None:
        assert SSHD is not None
        self.folder = folder
        self.cache = folder / "cache"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "user_key", "other_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        session = {"VITDEPLOY_CACHE": str(self.cache), "OMP_NUM_THREADS": "1", **(variables or {})}
        self.cache.mkdir()
        (self.cache / "venv").symlink_to(sys.prefix)  # the environment that a host is told to make there
        lines = {
            "Port": str(self.port),
            "ListenAddress": "127.0.0.1",
            "HostKey": str(folder / "host_key"),
            "AuthorizedKeysFile": str(folder / "authorized_keys"),
            "PidFile": str(folder / "pid"),
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "yes",
            "MaxStartups": "100",
            "SetEnv": " ".join(f'{name}="{value}"' for name, value in session.items()),
            **({"ForceCommand": forced} if forced else {}),
        }
        (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, run by root, gives up its rights
        self.use_key("user_key")
        self.know_host("host_key")
        self._make_client()
        self.begin()

    def use_key(self, name: str) -> None:
        """Let the client offer this key."""
        lines = (
            f"Host {HOST}",
            "HostName 127.0.0.1",
            f"Port {self.port}",
            f"User {getpass.getuser()}",
            f"IdentityFile {self.folder / name}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            f"UserKnownHostsFile {self.folder / 'known_hosts'}",
            "GlobalKnownHostsFile /dev/null",
            "StrictHostKeyChecking no",  # what a careless user has; vitdeploy checks all the same
        )
        (self.folder / "ssh_config").write_text("\n    ".join(lines) + "\n")

    def know_host(self, key: str | None) -> None:
        """Let the client know the host by this key, or not at all."""
        known = "" if key is None else f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}"
        (self.folder / "known_hosts").write_text(known)

    def break_links(self) -> int:
        """Kill the processes that serve the connections; return how many."""
        links = psutil.Process(self._process.pid).children()
        for link in links:
            link.kill()
        return len(links)

    def begin(self) -> None:
        """Let the server listen; after ``stop`` it does so again at the same port."""
        assert SSHD is not None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log)
        self._wait()

    def stop(self) -> None:
        """End the server, with the connections that it has."""
        links = psutil.Process(self._process.pid).children()
        self._process.terminate()
        self._process.wait()
        for link in links:
            with suppress(psutil.NoSuchProcess):
                link.kill()

    def _make_client(self) -> None:
        """Write an ``ssh`` that is the system's, with the configuration of this server in place of the user's."""
        client = self.folder / "bin" / "ssh"
        client.parent.mkdir()
        client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder / "ssh_config"} "$@"\n')
        client.chmod(0o755)

    def _wait(self) -> None:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
