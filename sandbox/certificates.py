"""A certificate authority and a server certificate for this machine, because msal and Microsoft's Dataverse client refuse http."""

import ssl
from pathlib import Path

import trustme

HOSTS = ("localhost", "127.0.0.1")


def make_certificates(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Write a new authority and server certificate into a folder; return the server's context and the CA bundle's path.

    Clients trust the server when REQUESTS_CA_BUNDLE (or SSL_CERT_FILE) names the bundle. Nothing is reused between calls.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA(organization_name="Concord sandbox")
    bundle = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    return context, bundle
