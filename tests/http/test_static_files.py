"""Static files by WhiteNoise under Django.  Under Flask docs/deploying.md has them, which test_docs.py follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ask, running

APPLICATION = """
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application

settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of a test", STATIC_URL="static/", STATIC_ROOT="collected",
    STATICFILES_DIRS=["assets"], INSTALLED_APPS=["django.contrib.staticfiles"],
    STORAGES={
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
    },
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "whitenoise.middleware.WhiteNoiseMiddleware"],
)
urlpatterns = []
app = get_wsgi_application()

if __name__ == "__main__":
    from django.core.management import execute_from_command_line
    execute_from_command_line(["manage.py", "collectstatic", "--no-input"])
"""
CSS = "body { font-family: sans-serif; }\n" * 100


def test_django(tmp_path: Path) -> None:
    """Names with a hash, which may be kept for ever; compressed for clients that take it; revalidated by ETag."""
    pytest.importorskip("django")
    pytest.importorskip("whitenoise")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/site.css").write_text(CSS)
    (tmp_path / "application.py").write_text(APPLICATION)
    subprocess.run([sys.executable, "application.py"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    (hashed,) = (path.name for path in (tmp_path / "collected").glob("site.*.css"))
    with running(tmp_path, APPLICATION, PKG_ADMIN="off") as process:
        status, headers, text = ask(process.address, f"/static/{hashed}")
        assert (status, text) == (200, CSS)
        assert "immutable" in headers["cache-control"]
        status, headers, _ = ask(process.address, f"/static/{hashed}", "HEAD", Accept_Encoding="gzip")
        assert (status, headers["content-encoding"]) == (200, "gzip")
        assert int(headers["content-length"]) < len(CSS) / 5
        status, headers, _ = ask(process.address, "/static/site.css")
        assert ask(process.address, "/static/site.css", If_None_Match=headers["etag"])[0] == 304
        assert ask(process.address, "/static/nothing.css")[0] == 404
        assert process.stop() == 0, process.errors()
