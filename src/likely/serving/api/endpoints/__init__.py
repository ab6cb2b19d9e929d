"""What the server answers: text completions, chats, OpenAI's newer form of a chat (responses), people's reviews."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.api.endpoints.chats import ChatsEndpoint as ChatsEndpoint
    from likely.serving.api.endpoints.completions import CompletionsEndpoint as CompletionsEndpoint
    from likely.serving.api.endpoints.responses import ResponsesEndpoint as ResponsesEndpoint
    from likely.serving.api.endpoints.reviews import ReviewsEndpoint as ReviewsEndpoint

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
