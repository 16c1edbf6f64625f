"""The routes keep to their OpenAPI document, whatever a client sends."""

import asyncio
from typing import Any

import pytest
from conformance import NEGATIVE, POSITIVE, exercise

LISTS = ("GET /v1/files", "GET /v1/batches")


@pytest.mark.parametrize("mode", [POSITIVE, NEGATIVE], ids=["allowed", "not allowed"])
async def test_what_is_answered_is_what_the_document_says(
    site: Any, request_lines: Any, submit: Any, mode: Any
) -> None:
    client = site.client()
    batch = await submit(client, request_lines(2))
    await site.ended(client, batch.id)
    document = site.app.openapi()
    paths = [path for path in document["paths"] if path.startswith(("/v1/files", "/v1/batches"))]

    counts = await asyncio.to_thread(
        lambda: exercise(document, site.url, mode, model="tiny", num_examples=4, only=paths)
    )

    assert len(counts) == 9
    if mode is POSITIVE:
        assert all(counts[name][200] for name in LISTS)
        assert counts["POST /v1/files"][200], counts
