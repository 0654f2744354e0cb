"""`triptych certs`: what it makes, and that it destroys nothing."""

import ssl

import pytest
from click.testing import CliRunner
from cryptography import x509

from gateway.access.certs_command import CLIENT, SERVERS, certs, hosts_of


@pytest.fixture
def run(tmp_path):
    """Runs `triptych certs` on a folder of its own."""

    def invoke(*arguments):
        return CliRunner().invoke(certs, [str(tmp_path / "certs"), *arguments])

    return invoke


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "certs"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_makes_a_certificate_and_a_key_for_every_end(run, folder):
    run()
    names = ["ca", *SERVERS, CLIENT]
    assert sorted(contents(folder)) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("crt", "key")
    )


@pytest.mark.parametrize("name", [*SERVERS, CLIENT])
def test_every_key_fits_its_certificate(run, folder, name):
    run()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")


def test_keys_are_their_owners_alone(run, folder):
    run()
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}


def test_a_server_is_known_by_its_name_by_loopback_and_by_the_hosts_given(run, folder):
    run("--hostname", "gpu-7.example.org", "--hostname", "10.0.0.7")
    assert hosts_of(folder, "refiner") == [
        *("refiner", "localhost", "gpu-7.example.org"),
        *("127.0.0.1", "::1", "10.0.0.7"),
    ]


def test_the_days_are_those_asked_for(run, folder):
    run("--days", "30")
    cert = x509.load_pem_x509_certificate((folder / "gateway.crt").read_bytes())
    assert (cert.not_valid_after_utc - cert.not_valid_before_utc).days == 30


def test_what_is_there_is_not_overwritten(run, folder):
    run()
    before = contents(folder)
    done = run()
    assert done.exit_code == 1
    assert "is not overwritten" in done.output
    assert contents(folder) == before


def test_a_single_file_that_is_there_is_not_overwritten_either(run, folder):
    folder.mkdir()
    (folder / "refiner.key").write_text("mine")
    assert run().exit_code == 1
    assert contents(folder) == {"refiner.key": b"mine"}


def test_with_if_missing_a_second_time_changes_nothing(run, folder):
    assert run("--if-missing").exit_code == 0
    before = contents(folder)
    assert run("--if-missing").exit_code == 0
    assert contents(folder) == before


def test_renewing_keeps_the_authority_and_the_hosts(run, folder):
    run("--hostname", "10.0.0.7")
    before = contents(folder)
    run("--renew")
    changed = {name for name, data in contents(folder).items() if data != before[name]}
    assert changed == set(before) - {"ca.crt", "ca.key"}
    assert "10.0.0.7" in hosts_of(folder, "upscaler")
    assert "generator" not in hosts_of(folder, "upscaler")


def test_renewing_without_the_authoritys_key_is_refused(run, folder):
    run()
    (folder / "ca.key").unlink()
    done = run("--renew")
    assert done.exit_code == 1
    assert "cannot renew without" in done.output


def test_a_host_that_no_certificate_can_name_is_wrong_usage(run):
    assert run("--hostname", "bücher.example").exit_code == 2
