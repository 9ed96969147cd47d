"""The smallest endpoints, models, balance and token counts; and what all endpoints but chat share."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticSerializationError, to_json

from .chat import MessageInput, Number, Text, WireModel, plain
from .errors import ConfigurationError
from .exchange import Call, Exchange, Read, as_wire, body_of

Item = TypeVar("Item", bound=BaseModel)
Wire = TypeVar("Wire", bound=BaseModel)


class Listing(WireModel, Generic[Item]):
    """One page of things; iterates, counts and indexes them as its ``data`` does.

    ``has_more`` says that further pages follow, where the endpoint has pages.
    """

    object: Text = "list"
    data: Annotated[list[Item], BeforeValidator(lambda value: [] if value is None else value)]
    has_more: bool | None = None

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]  # pydantic's own yields the fields
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        return self.data[index]


class ModelInfo(WireModel):
    """A model that the account may use; what an answer leaves out is None.

    ``context_length`` is in tokens, prompt and answer together; ``created`` in seconds since 1970.
    """

    id: str
    object: Text = "model"
    created: Number = 0
    owned_by: Text = ""
    context_length: int | None = None
    supports_image_in: bool | None = None
    supports_video_in: bool | None = None
    supports_reasoning: bool | None = None


class Balance(WireModel):
    """What is left, in the account's currency: CNY on api.moonshot.cn, USD on api.moonshot.ai.

    ``available_balance`` is all of it; at zero and below Kimi answers no more. ``cash_balance`` may be negative.
    """

    available_balance: float
    voucher_balance: float
    cash_balance: float


class _BalanceAnswer(WireModel):
    data: Balance


class _Estimate(WireModel):
    total_tokens: int


class _EstimateAnswer(WireModel):
    """Newer answers have ``data`` alone, older ones ``code``, ``scode`` and ``status`` next to it."""

    data: _Estimate


class Models:
    """``kimi.models``."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def list(self) -> Listing[ModelInfo]:
        """The models that the account may use. Raises KimiError."""
        call = Call(method="GET", path="/models")
        return await self._exchange.send(call, reading(Listing[ModelInfo], what="list of models"))


class Users:
    """``kimi.users``."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def balance(self) -> Balance:
        """The account's balance. Raises KimiError."""
        call = Call(method="GET", path="/users/me/balance")
        return (await self._exchange.send(call, reading(_BalanceAnswer, what="balance"))).data


class Tokenizers:
    """``kimi.tokenizers``."""

    def __init__(self, exchange: Exchange, *, model: str | None) -> None:
        self._exchange = exchange
        self._model = model

    async def estimate(self, *, messages: Sequence[MessageInput], model: str | None = None) -> int:
        """Tokens of a prompt as Kimi counts them, images and videos included; tools it cannot count.

        Texts are counted exactly, and without a request, by ``kimi.counter``.

        Args:
            messages: as for ``chat.completions.create``.
            model: by default the client's.

        Raises:
            ConfigurationError: no model, or messages that are none.
            KimiError: what any request raises.
        """
        model = model or self._model
        if model is None:
            raise ConfigurationError("no model: pass model=, or give the client one")
        if isinstance(messages, str):
            raise ConfigurationError('messages is a list of messages: [{"role": "user", "content": ...}]')
        content = json_body({"model": model, "messages": [plain(message) for message in messages]})
        call = Call(path="/tokenizers/estimate-token-count", content=content, model=model)
        return (await self._exchange.send(call, reading(_EstimateAnswer, what="token count"))).data.total_tokens


def reading(kind: type[Wire], *, what: str) -> Read[Wire]:
    """Makes that kind of value of an answer, which an InvalidResponseError calls ``what``."""

    async def read(response: httpx.Response) -> Wire:
        return as_wire(await body_of(response), kind, what=what)

    return read


def json_body(fields: Mapping[str, object]) -> bytes:
    """A request's body. Raises ConfigurationError for what JSON cannot hold."""
    try:
        return to_json(fields)
    except PydanticSerializationError as exc:
        raise ConfigurationError(f"the request cannot be written as JSON: {exc}") from exc


def path_of(kind: str, name: str, action: str = "") -> str:
    """The path of one thing, ``/files/file-1/content``. Raises ConfigurationError for one without a name."""
    if not name:
        raise ConfigurationError(f"an empty id, where that of one of the {kind} is expected")
    return f"/{kind}/{quote(name, safe='')}{action}"
