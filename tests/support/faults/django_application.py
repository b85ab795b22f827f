"""The application of the fault tests with Django's own connections; DJANGO_OPTIONS has the OPTIONS in JSON.

/query           one query
/sleep?SECONDS   a query that takes so long
"""

from __future__ import annotations

import json
import os
from typing import Any

import django
from django.conf import settings

from pkg.integrations.django import database

ENTRY = {**database(), "ENGINE": "django.db.backends.postgresql"}
ENTRY["OPTIONS"] = json.loads(os.environ.get("DJANGO_OPTIONS", "{}"))
settings.configure(
    DATABASES={"default": ENTRY},
    MIDDLEWARE=["pkg.integrations.django.middleware.Unavailable"],
    ROOT_URLCONF=__name__, SECRET_KEY="of a test", ALLOWED_HOSTS=["*"], USE_TZ=True, INSTALLED_APPS=[],
    LOGGING_CONFIG=None,
)  # fmt: skip
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from pkg.integrations.django.readiness import check_database  # noqa: E402


def query(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("select 42")
    return HttpResponse("ok")


def sleep(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("select pg_sleep(%s)", [float(request.META["QUERY_STRING"])])
    return HttpResponse("ok")


urlpatterns: list[Any] = [path("query", query), path("sleep", sleep)]
app = get_wsgi_application()
check_database(role=os.environ.get("ENGINE_ROLE", "any"))
