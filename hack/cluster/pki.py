"""The cluster's own certificate authority, the certificates it signs, and the kubeconfig files made of them.

Called by `Cluster` before anything starts. Elliptic-curve keys: they take milliseconds. It must not know ports or
processes; whoever writes a kubeconfig passes the URL in.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_FOR = datetime.timedelta(days=365)

SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)

# File name -> common name and the DNS names it answers for.
SERVERS: Mapping[str, tuple[str, Sequence[str]]] = {"server": ("kubernetes", SERVER_NAMES)}

CLIENTS: Mapping[str, tuple[str, str | None]] = {
    "admin": ("admin", "system:masters"),
    "node": ("process-node", "system:masters"),  # it acts for every service account on it
    "kube-controller-manager": ("system:kube-controller-manager", None),
    "kube-scheduler": ("system:kube-scheduler", None),
}


@dataclass(frozen=True, slots=True)
class Pki:
    """A folder with `ca.crt`, `<client>.crt`, `<client>.key`, `server.crt`, `server.key`, `sa.key` and `sa.pub`."""

    folder: Path

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    @property
    def ca(self) -> Path:
        return self.cert("ca")


def create(
    folder: Path,
    *,
    clients: Mapping[str, tuple[str, str | None]] = CLIENTS,
    servers: Mapping[str, tuple[str, Sequence[str]]] = SERVERS,
    addresses: Sequence[str] = ("127.0.0.1",),
) -> Pki:
    """Make everything anew in `folder`; keys are readable by the owner only. `addresses` are those of the servers."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki = Pki(folder)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _signed(_name("funicular-cluster-ca"), ca_key.public_key(), issuer=None, signer=ca_key, is_ca=True)
    _write(pki.cert("ca"), ca.public_bytes(serialization.Encoding.PEM))
    _write(pki.key("ca"), _private_pem(ca_key))
    identities = {file: (_name(*subject), list[x509.GeneralName]()) for file, subject in clients.items()}
    for file, (common_name, names) in servers.items():
        identities[file] = _name(common_name), [*map(x509.DNSName, names), *map(_address, addresses)]
    for file, (subject, reachable_as) in identities.items():
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _signed(subject, key.public_key(), ca.subject, ca_key, reachable_as=reachable_as)
        _write(pki.cert(file), cert.public_bytes(serialization.Encoding.PEM))
        _write(pki.key(file), _private_pem(key))
    account_key = ec.generate_private_key(ec.SECP256R1())
    _write(pki.key("sa"), _private_pem(account_key))
    public = account_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(folder / "sa.pub", public)
    return pki


def write_kubeconfig(path: Path, pki: Pki, client: str, api_url: str) -> None:
    """A kubeconfig with everything inside, so that the file alone can be copied elsewhere."""
    user = {
        "client-certificate-data": _base64_of(pki.cert(client)),
        "client-key-data": _base64_of(pki.key(client)),
    }
    _write(path, yaml.safe_dump(kubeconfig(api_url, _base64_of(pki.ca), user, name="funicular")).encode())


def kubeconfig(api_url: str, ca_data: str, user: dict[str, str], *, name: str) -> dict[str, object]:
    """The kubeconfig document for one cluster, one user, one context."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": api_url, "certificate-authority-data": ca_data}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def _base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))


def _signed(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name | None,
    signer: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool = False,
    reachable_as: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_key_usage(is_ca), critical=True)
    )
    if not is_ca:
        usage = ExtendedKeyUsageOID.SERVER_AUTH if reachable_as else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if reachable_as:
        builder = builder.add_extension(x509.SubjectAlternativeName(reachable_as), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _key_usage(is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
