"""GET /v1/models and /v1/models/{id}."""

from starlette.requests import Request

from quire.server.engine import Engine
from quire.server.openai.replies import ModelCard, ModelList
from quire.server.openai.served import ServedModel


async def list_models(http: Request) -> ModelList:
    """The served names."""
    served = _served(http)
    return {"object": "list", "data": [_card(http, served, name) for name in served.names]}


async def retrieve_model(http: Request, model_id: str) -> ModelCard:
    """One served name."""
    served = _served(http)
    return _card(http, served, served.resolve(model_id))


def _served(http: Request) -> ServedModel:
    engine: Engine = http.app.state.engine
    engine.check_available()
    served: ServedModel = http.app.state.served
    return served


def _card(http: Request, served: ServedModel, name: str) -> ModelCard:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "quire",
        "root": served.names[0],
        "parent": None,
        "max_model_len": http.app.state.engine.max_length,
    }
