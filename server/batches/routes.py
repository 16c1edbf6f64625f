"""/v1/files and /v1/batches. They read `app.state.batches`: a `BatchService`, or None."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from quire.config.limits import LIMITS
from quire.config.settings import ServeSettings
from quire.server.batches.file_table import NewFile, new_file_id
from quire.server.batches.schema import (
    BatchList,
    BatchObject,
    BatchRequest,
    FileDeleted,
    FileList,
    FileObject,
    FileUpload,
)
from quire.server.batches.service import BatchService
from quire.server.batches.store import Store
from quire.server.batches.upload import receive_upload
from quire.server.errors import NotFound
from quire.server.openai.body import read_request, warning_headers
from quire.server.openai.documented import Responses, body, errors
from quire.server.openai.origin import caller_of
from quire.server.openai.replies import ErrorReply
from quire.server.openai.unknown_fields import check_unknown

_FULL = "The state folder has no room."

After = Annotated[str | None, Query(max_length=128, description="The last id of the page before.")]


async def create_file(http: Request) -> Response:
    """Upload a file of requests."""
    service, settings = _service(http), _settings(http)
    # What a crash left is swept before anything new is there.
    await service.store.run(lambda store: None)
    upload = receive_upload(
        http,
        service.store.folder,
        max_size=settings.max_file_size,
        seconds=settings.body_timeout,
    )
    async with upload as received:
        check_unknown(received.form, strict=settings.strict)
        expiry = received.form.expires_after
        file = NewFile(
            id=new_file_id(),
            owner=_owner(http),
            purpose=received.form.purpose,
            filename=received.filename,
            size=received.size,
            seconds=LIMITS.max_expiry_seconds if expiry is None else expiry.seconds,
        )
        kept = await service.store.run(lambda store: store.files.add(file, received.part))
    return JSONResponse(kept, headers=warning_headers(received.form))


async def list_files(
    http: Request,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Of a page.")] = 10_000,
    order: Annotated[Literal["asc", "desc"], Query(description="By creation.")] = "desc",
    purpose: Annotated[str | None, Query(max_length=64, description="Those for it alone.")] = None,
) -> Response:
    """The caller's files, a page at a time."""
    owner = _owner(http)

    def page(store: Store) -> bytes:
        files, has_more = store.files.list(
            owner, after=after, limit=limit, order=order, purpose=purpose
        )
        return _page(files, has_more)

    # In the store's thread: a page may be long enough to hold up every stream.
    return Response(await _service(http).store.run(page), media_type="application/json")


async def retrieve_file(http: Request, file_id: str) -> FileObject:
    """What is known of a file."""
    owner = _owner(http)
    return await _service(http).store.run(lambda store: store.files.get(file_id, owner))


async def delete_file(http: Request, file_id: str) -> FileDeleted:
    """Delete a file. A batch that reads it goes on."""
    owner = _owner(http)
    await _service(http).store.run(lambda store: store.files.delete(file_id, owner))
    return {"id": file_id, "object": "file", "deleted": True}


async def download_file(http: Request, file_id: str) -> Response:
    """A file's bytes."""
    service, owner = _service(http), _owner(http)
    file = await service.store.run(lambda store: store.files.get(file_id, owner))
    path = service.store.folder.blob(file["id"])
    found = await asyncio.to_thread(lambda: path.stat() if path.is_file() else None)
    if found is None:
        raise NotFound(f"No such file: {file_id}", param="file_id", code="file_not_found")
    return FileResponse(
        path,
        filename=file["filename"],
        media_type="application/octet-stream",
        stat_result=found,
    )


async def create_batch(http: Request) -> Response:
    """Run the requests of a file, behind all live ones."""
    service = _service(http)
    request = await read_request(http, BatchRequest)
    caller = caller_of(http.scope)
    name = None if caller is None else caller.name
    owner = _owner(http)
    batch = await service.store.run(lambda store: store.batches.create(request, owner, name))
    await service.runner.look()
    return JSONResponse(batch, headers=warning_headers(request))


async def list_batches(
    http: Request,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Of a page.")] = 20,
) -> Response:
    """The caller's batches, the newest first, a page at a time."""
    owner = _owner(http)

    def page(store: Store) -> bytes:
        return _page(*store.batches.list(owner, after=after, limit=limit))

    return Response(await _service(http).store.run(page), media_type="application/json")


async def retrieve_batch(http: Request, batch_id: str) -> BatchObject:
    """How far a batch is."""
    owner = _owner(http)
    return await _service(http).store.run(lambda store: store.batches.get(batch_id, owner))


async def cancel_batch(http: Request, batch_id: str) -> BatchObject:
    """Abort what runs of a batch; what is done already is kept."""
    service, owner = _service(http), _owner(http)
    batch = await service.store.run(lambda store: store.batches.cancel(batch_id, owner))
    await service.runner.look()
    return batch


def build_batch_router() -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["batches"])
    read = errors(400, 401, 404, 503)
    write = {**read, **errors(408, 413, 415), 507: {"model": ErrorReply, "description": _FULL}}
    router.add_api_route(
        "/files",
        create_file,
        methods=["POST"],
        responses=_replies(FileObject, write),
        openapi_extra=_form(),
    )
    router.add_api_route("/files", list_files, methods=["GET"], responses=_replies(FileList, read))
    router.add_api_route("/files/{file_id}", retrieve_file, methods=["GET"], responses=read)
    router.add_api_route("/files/{file_id}", delete_file, methods=["DELETE"], responses=read)
    router.add_api_route(
        "/files/{file_id}/content",
        download_file,
        methods=["GET"],
        response_class=FileResponse,
        responses=read,
    )
    router.add_api_route(
        "/batches",
        create_batch,
        methods=["POST"],
        responses=_replies(BatchObject, write),
        openapi_extra=body(BatchRequest),
    )
    router.add_api_route(
        "/batches", list_batches, methods=["GET"], responses=_replies(BatchList, read)
    )
    router.add_api_route("/batches/{batch_id}", retrieve_batch, methods=["GET"], responses=read)
    router.add_api_route(
        "/batches/{batch_id}/cancel", cancel_batch, methods=["POST"], responses=read
    )
    return router


def _page(items: Sequence[FileObject] | Sequence[BatchObject], has_more: bool) -> bytes:
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    ids = {"first_id": first, "last_id": last}
    return orjson.dumps({"object": "list", "data": items, **ids, "has_more": has_more})


def _replies(whole: Any, others: Responses) -> Responses:
    return {200: {"model": whole}, **others}


def _form() -> dict[str, Any]:
    """The body of an upload, for the OpenAPI document."""
    fields = body(FileUpload)["requestBody"]["content"]["application/json"]["schema"]
    file = {
        "type": "string",
        "format": "binary",
        "description": "JSON lines, one request in each.",
    }
    schema = {
        **fields,
        "properties": {**fields["properties"], "file": file},
        "required": ["file", *fields["required"]],
    }
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def _service(http: Request) -> BatchService:
    service: BatchService | None = http.app.state.batches
    if service is None:
        raise NotFound(
            "This server keeps no files and batches; start it with --state-dir",
            code="not_enabled",
        )
    return service


def _settings(http: Request) -> ServeSettings:
    settings: ServeSettings = http.app.state.settings
    return settings


def _owner(http: Request) -> str:
    """Whose a file or batch is; without API keys everything is everyone's."""
    caller = caller_of(http.scope)
    return "" if caller is None else caller.identity
