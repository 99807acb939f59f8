"""A certificate authority for tests, made with openssl on the fly."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass
class Authority:
    """A certificate authority that signs for one name."""

    directory: Path
    name: str

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self._key("ca")
        subject = ("-subj", f"/CN={self.name} authority", "-days", "1")
        openssl("req", "-x509", "-new", "-key", self.file("ca.key"), "-out", self.file("ca.crt"), *subject)

    def file(self, name: str) -> Path:
        return self.directory / name

    def sign(self, name: str, host: str) -> None:
        self._key(name)
        extension = self.file(f"{name}.ext")
        extension.write_text(f"subjectAltName=DNS:{host}\n")
        request, signed = self.file(f"{name}.csr"), self.file(f"{name}.crt")
        openssl("req", "-new", "-key", self.file(f"{name}.key"), "-out", request, "-subj", f"/CN={host}")
        authority = ("-CA", self.file("ca.crt"), "-CAkey", self.file("ca.key"), "-CAcreateserial")
        openssl("x509", "-req", "-in", request, *authority, "-out", signed, "-days", "1", "-extfile", extension)

    def hand_out(self, host: str) -> None:
        """A directory with what a service of that name needs, as cert-manager lays it out."""
        self.sign(host, host)
        directory = self.handed(host)
        directory.mkdir()
        for name, file in (("ca.crt", "ca.crt"), ("tls.crt", f"{host}.crt"), ("tls.key", f"{host}.key")):
            shutil.copy(self.file(file), directory / name)

    def handed(self, host: str, *, into: Path | None = None) -> Path:
        """The directory that was handed out; a copy of it."""
        directory = self.directory / f"of-{host}"
        return directory if into is None else Path(shutil.copytree(directory, into))

    def _key(self, name: str) -> None:
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", self.file(f"{name}.key"))
