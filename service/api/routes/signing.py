"""GET /keys/signing: the public keys that this service signs reports with."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.services import UsesServices

__all__ = ["SigningKeysAnswer", "router"]

router = APIRouter(tags=["results"])


class SigningKeysAnswer(BaseModel):
    """Ed25519 public keys, 64 hexadecimal digits each."""

    algorithm: str = "ed25519"
    public_key: str = Field(description="Signs reports now.")
    former: list[str] = Field(description="Signed reports before, newest first.")


@router.get("/keys/signing", summary="The public keys that reports are signed with")
async def signing_keys(services: UsesServices) -> SigningKeysAnswer:
    """Compare them over a channel that you trust, once: a report carries a key of its own, which
    proves nothing."""

    def read() -> SigningKeysAnswer:
        keys = services.signing_keys
        return SigningKeysAnswer(public_key=keys.public(), former=keys.former())

    return await to_thread.run_sync(read)
