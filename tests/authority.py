"""A certificate authority for tests, created with openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass
class Authority:
    """A certificate authority (CA) with its files in a directory."""

    directory: Path
    name: str

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self._key("ca")
        subject = ("-subj", f"/CN={self.name} CA", "-days", "1")
        openssl("req", "-x509", "-new", "-key", self.file("ca.key"), "-out", self.file("ca.crt"), *subject)

    def file(self, name: str) -> Path:
        return self.directory / name

    def sign(self, name: str, host: str) -> None:
        """Create NAME.key and NAME.crt for a host."""
        self._key(name)
        extension = self.file(f"{name}.ext")
        extension.write_text(f"subjectAltName=DNS:{host}\n")
        request, signed = self.file(f"{name}.csr"), self.file(f"{name}.crt")
        openssl("req", "-new", "-key", self.file(f"{name}.key"), "-out", request, "-subj", f"/CN={host}")
        authority = ("-CA", self.file("ca.crt"), "-CAkey", self.file("ca.key"), "-CAcreateserial")
        openssl("x509", "-req", "-in", request, *authority, "-out", signed, "-days", "1", "-extfile", extension)

    def issue_directory(self, host: str) -> None:
        """Create a directory with ca.crt, tls.crt and tls.key, as cert-manager does."""
        self.sign(host, host)
        directory = self.directory_of(host)
        directory.mkdir()
        for name, file in (("ca.crt", "ca.crt"), ("tls.crt", f"{host}.crt"), ("tls.key", f"{host}.key")):
            shutil.copy(self.file(file), directory / name)

    def directory_of(self, host: str) -> Path:
        """The directory that ``issue_directory`` created."""
        return self.directory / f"of-{host}"

    def _key(self, name: str) -> None:
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", self.file(f"{name}.key"))
