"""The HTTP application: routers, error handling, start and stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import APIRouter, FastAPI

from service.api.errors import PROBLEM_RESPONSES, install_handlers
from service.api.middleware import SecurityHeaders
from service.api.openapi import describe
from service.api.routes import (
    bulk,
    catalogue,
    certify,
    documentation,
    events,
    health,
    jobs,
    reports,
    signing,
    train,
)
from service.api.services import Services
from service.api.uploads import datasets, models
from service.contract.settings import Settings
from service.contract.version import release

__all__ = ["create_app"]

_DESCRIPTION = """Certified robustness as a service: post a classifier, a data set and a threat
model; get back what no perturbation inside it can change. Errors are RFC 9457 problem details."""

#: One module of endpoints per subject.
_SUBJECTS = (
    *(certify, train, bulk, jobs, events, reports, signing),
    *(models, datasets, catalogue, health, documentation),
)


def create_app(settings: Settings | None = None, *, pages: Sequence[APIRouter] = ()) -> FastAPI:
    """The application; without ``settings`` the environment is read (uvicorn's ``--factory``).

    ``pages``: routers of the console, which is built on this API.
    """
    chosen = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = await to_thread.run_sync(Services.start, chosen)
        app.state.services = services
        try:
            yield
        finally:
            await services.events.close()
            await to_thread.run_sync(services.close)

    app = FastAPI(
        title="certserve",
        version=release(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=PROBLEM_RESPONSES,
    )
    app.add_middleware(SecurityHeaders)
    routers = [*(module.router for module in _SUBJECTS), *pages]
    install_handlers(app, [route for router in routers for route in router.routes])
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app
