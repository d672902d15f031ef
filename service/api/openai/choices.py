"""From what the engine generated to the choices of an answer."""

from collections.abc import Sequence

from service.api.openai.answers import (
    ChatChoice,
    ChatLogprobs,
    ChatMessage,
    ChatToken,
    ChoiceRan,
    CompletionChoice,
    Logprobs,
    PromptTokensDetails,
    TokenAlternative,
    TokenUsage,
)
from service.api.openai.samples import Sample
from service.engine.language import Completion, LanguageEngine
from service.engine.sampling import Choice
from service.engine.terms import noted


def choice_of(done: Completion, sample: Sample, engine: LanguageEngine) -> CompletionChoice:
    """A whole choice."""
    asked = sample.sampling.logprobs is not None
    return CompletionChoice(
        index=sample.index,
        text=sample.echo + done.text,
        logprobs=logprobs_of(done.choices, (), engine) if asked else None,
        finish_reason=done.finish_reason,
        fathom=ran_of(done, sample, engine),
    )


def chat_choice_of(done: Completion, sample: Sample, engine: LanguageEngine) -> ChatChoice:
    """A whole answer to a conversation."""
    asked = sample.sampling.logprobs is not None
    return ChatChoice(
        index=sample.index,
        message=ChatMessage(content=done.text),
        logprobs=chat_logprobs_of(done.choices, engine) if asked else None,
        finish_reason=done.finish_reason,
        fathom=ran_of(done, sample, engine),
    )


def ran_of(done: Completion, sample: Sample, engine: LanguageEngine) -> ChoiceRan:
    """Which chain ran, and what it cost."""
    return ChoiceRan(
        version=engine.manifest.version,
        chain=list(done.chain.layers),
        layers_executed=done.layers_executed,
        layers_full=done.layers_full,
        seed=sample.sampling.seed,
        **noted(),
    )


def logprobs_of(choices: Sequence[Choice], before: tuple[int, ...], engine: LanguageEngine) -> Logprobs:
    """Log-probabilities of tokens that follow the token ids `before`."""
    tokenizer = engine.tokenizer
    # The vocabulary's own texts, as in /predict: decoded ones are not unique, and here they are keys.
    told = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for choice in choices:
        chosen = tokenizer.token(choice.token_id)
        told.tokens.append(chosen)
        told.token_logprobs.append(choice.logprob)
        top = {tokenizer.token(token_id): logprob for token_id, logprob in choice.top}
        told.top_logprobs.append({**top, chosen: choice.logprob})
        told.text_offset.append(len(tokenizer.decode(before)))
        before = (*before, choice.token_id)
    return told


def chat_logprobs_of(choices: Sequence[Choice], engine: LanguageEngine) -> ChatLogprobs:
    """Log-probabilities of tokens, in the shape conversations have them."""

    def named(token_id: int, logprob: float) -> TokenAlternative:
        token = engine.tokenizer.token(token_id)
        return TokenAlternative(token=token, logprob=logprob, bytes=list(token.encode()))

    content = [
        ChatToken(
            **named(choice.token_id, choice.logprob).model_dump(),
            top_logprobs=[named(*alternative) for alternative in choice.top],
        )
        for choice in choices
    ]
    return ChatLogprobs(content=content)


def usage_of(done: Sequence[Completion], n: int) -> TokenUsage:
    """Tokens of the `n` choices of each prompt, in order of their indices."""
    prompt_tokens = sum(one.num_prompt_tokens for one in done[::n])
    completion_tokens = sum(len(one.token_ids) for one in done)
    return TokenUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(one.num_cached_tokens for one in done[::n])),
    )
