"""Static files: kept for ever under an address that changes with them, and those of others unchanged."""

import gzip
import hashlib
import re
from pathlib import Path

import cotenant.console
from cotenant.console.responses import asset_url, assets, version
from tests.console.looking import gateway, look

HERE = Path(cotenant.console.__file__).parent
VENDOR = HERE / "static" / "vendor"
LIMIT_BYTES = 50_000


async def test_a_file_is_kept_for_ever_and_packed():
    app = gateway()
    plain = await look(app, asset_url("cotenant.css"))
    packed = await look(app, asset_url("cotenant.css"), Accept_Encoding="gzip")
    assert (plain.status, plain.headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert "immutable" in plain.headers["cache-control"]
    assert gzip.decompress(packed.body) == plain.body
    same = await look(app, asset_url("cotenant.css"), If_None_Match=plain.headers["etag"])
    assert (same.status, same.body) == (304, b"")


async def test_an_old_address_still_leads_to_the_file_and_is_not_kept():
    page = await look(gateway(), "/ui/static/000000000000/cotenant.js")
    assert (page.status, page.headers["cache-control"]) == (200, "no-cache")


async def test_nothing_else_of_the_machine_is_served():
    for path in (
        "../app.py",
        "%2e%2e/app.py",
        "vendor",
        "vendor/README.md",
        "vendor/htmx-2.0.11/LICENSE",
        "",
    ):
        assert (await look(gateway(), f"/ui/static/{version()}/{path}")).status == 404


def test_what_templates_and_scripts_name_is_there():
    for template in (HERE / "templates").glob("*.html"):
        for path in re.findall(r"asset\('([^']+)'\)", template.read_text()):
            assert path in assets(), (template.name, path)
    for script in (HERE / "static").glob("*.js"):
        for path in re.findall(r'from "\./([^"]+)"', script.read_text()):
            assert path in assets(), (script.name, path)


def test_files_of_others_are_as_their_list_says():
    rows = re.findall(
        r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", (VENDOR / "README.md").read_text(), re.MULTILINE
    )
    listed = dict(rows)
    there = {str(path.relative_to(VENDOR)) for path in VENDOR.rglob("*") if path.suffix in (".js", ".css")}
    assert set(listed) == there
    for path, digest in rows:
        assert hashlib.sha256((VENDOR / path).read_bytes()).hexdigest() == digest
        assert (VENDOR / path).with_name("LICENSE").is_file()


async def test_the_first_page_weighs_less_than_fifty_kilobytes_beyond_libraries():
    app = gateway()
    page = await look(app, Accept_Encoding="gzip")
    own = {path: asset for path, asset in assets().items() if not path.startswith("vendor/")}
    assert len(page.body) + sum(len(asset.packed) for asset in own.values()) < LIMIT_BYTES
