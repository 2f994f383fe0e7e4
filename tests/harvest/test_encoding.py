"""Tokens, roles and spans against the tokenizer itself and hand-written expectations."""

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harvest.encoding import ROLES, EncodedPrompt, check_prompts, encode
from store import InputError, PromptSet

REASONING = (
    "{% for message in messages %}<|{{ message.role }}|>{% set c = message.content %}"
    "{% if message.role == 'assistant' and '</think>' in c %}"
    "{% if loop.last %}{{ c.split('</think>')[0].rstrip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ c.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ c }}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def one(tokenizer: Any, row: dict[str, Any], **options: Any) -> EncodedPrompt:
    return encode(tokenizer, PromptSet.from_rows([row]).table, **options)[0]


def characters() -> PreTrainedTokenizerFast:
    """One token per character, no special tokens: offsets that can be read off."""
    vocab = {chr(code): code for code in range(1, 300)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token=chr(1)))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=chr(1))


def covered(prompt: EncodedPrompt, mask: np.ndarray) -> str:
    return "".join(chr(token) for token in prompt.ids[mask])


def role(prompt: EncodedPrompt, name: str) -> np.ndarray:
    return prompt.role == ROLES.index(name)


def test_text_is_tokenised_as_it_stands_with_the_tokenizers_own_special_tokens(tokenizer: Any) -> None:
    prompt = one(tokenizer, {"text": "What is  Paris?\n"})
    assert prompt.ids.tolist() == tokenizer("What is  Paris?\n").input_ids
    assert prompt.role[0] == ROLES.index("template")
    assert role(prompt, "text")[1:].all()


@pytest.mark.parametrize("text", ["Paris", "<s>Paris", "<s>", "<s><s> plus", "<s><s><s>"])
def test_exactly_one_bos_for_text(tokenizer: Any, text: str) -> None:
    assert (one(tokenizer, {"text": text}).ids == tokenizer.bos_token_id).sum() == 1


@pytest.mark.parametrize("template", ["with", "without"])
def test_exactly_one_bos_for_messages(tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if template == "without":
        monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("{{ bos_token }}", ""))
    prompt = one(tokenizer, {"messages": [{"role": "user", "content": "Hi"}]})
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert (prompt.ids == tokenizer.bos_token_id).sum() == 1


def test_messages_are_what_the_template_writes_with_the_generation_prompt_after_a_user(tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Paris?"}]
    prompt = one(tokenizer, {"messages": chat})
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert prompt.ids.tolist() == expected
    answered = [*chat, {"role": "assistant", "content": "In France."}]
    prompt = one(tokenizer, {"messages": answered})
    assert prompt.ids.tolist() == tokenizer.apply_chat_template(answered, return_dict=False)
    response = tokenizer.decode(prompt.ids[prompt.response])
    assert response == "In France."


def test_a_response_column_is_an_assistant_turn_or_follows_the_text(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Where is Paris?"}]
    prompt = one(tokenizer, {"messages": chat, "response": "In France."})
    answered = [*chat, {"role": "assistant", "content": "In France."}]
    assert prompt.ids.tolist() == tokenizer.apply_chat_template(answered, return_dict=False)
    assert role(prompt, "assistant").tolist() == prompt.response.tolist()
    prompt = one(tokenizer, {"text": "Where is Paris?", "response": " In France."})
    assert tokenizer.decode(prompt.ids[prompt.response]) == " In France."
    assert role(prompt, "assistant").tolist() == prompt.response.tolist()


def test_roles_are_exact_even_for_words_of_the_template() -> None:
    """A message that says `user` must not be confused with the template's own `user`."""
    tokenizer = characters()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    chat = [
        {"role": "system", "content": "user"},
        {"role": "user", "content": "user] user"},
        {"role": "assistant", "content": "\n"},
        {"role": "user", "content": "a"},
    ]
    prompt = one(tokenizer, {"messages": chat})
    text = "[system] user\n[user] user] user\n[assistant] \n\n[user] a\n"
    assert covered(prompt, np.ones(len(prompt), bool)) == text
    where = [" "] * len(text)
    for at, content, letter in ((9, "user", "s"), (21, "user] user", "u"), (44, "\n", "a"), (53, "a", "u")):
        where[at : at + len(content)] = letter * len(content)
    letters = {"template": " ", "system": "s", "user": "u", "assistant": "a"}
    assert "".join(letters[ROLES[code]] for code in prompt.role) == "".join(where)


@pytest.mark.parametrize(
    "template", [REASONING, "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"]
)
def test_spans_map_exactly_through_templates_that_trim_and_drop_thoughts(template: str) -> None:
    tokenizer = characters()
    tokenizer.chat_template = template
    thought = "  <think>\nlet me see\n</think>\n\nIt is four."
    chat = [
        {"role": "user", "content": "two plus two? "},
        {"role": "assistant", "content": thought},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": thought},
    ]
    for message, piece in ((0, "plus two"), (1, "is four"), (3, "let me"), (3, "four."), (2, "sure?")):
        start = chat[message]["content"].index(piece)
        prompt = one(
            tokenizer, {"messages": chat, "spans": [{"message": message, "start": start, "end": start + len(piece)}]}
        )
        assert covered(prompt, prompt.span) == piece
        rendered = tokenizer.apply_chat_template(chat, tokenize=False)
        wanted = rendered.index("sure?") if message > 1 else 0
        assert np.flatnonzero(prompt.span)[0] >= wanted


def test_a_span_across_the_tags_of_a_thought_is_one_run() -> None:
    tokenizer = characters()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    content = "<think>\nwhy\n</think>\n\nso"
    prompt = one(
        tokenizer,
        {"messages": [{"role": "assistant", "content": content}], "spans": [{"message": 0, "start": 8, "end": 24}]},
    )
    assert covered(prompt, prompt.span) == content[8:24]


def test_a_dropped_span_is_refused_by_name() -> None:
    tokenizer = characters()
    tokenizer.chat_template = REASONING
    chat = [{"role": "assistant", "content": "<think>\nsecret\n</think>\n\nHi"}, {"role": "user", "content": "ok"}]
    with pytest.raises(InputError, match="span 8-14 of message 0 of prompt 'p7'"):
        one(tokenizer, {"prompt_id": "p7", "messages": chat, "spans": [{"message": 0, "start": 8, "end": 14}]})


def test_spans_of_text_with_trimmed_offsets_and_several_bytes(tokenizer: Any) -> None:
    text = "The city of Paris — 巴黎 — is in France."
    for piece in ("Paris", " 巴", "黎", " is in"):
        start = text.index(piece)
        prompt = one(tokenizer, {"text": text, "spans": [{"message": 0, "start": start, "end": start + len(piece)}]})
        inside = tokenizer.decode(prompt.ids[prompt.span])
        assert piece.strip() in inside
        # Not a token more than those that hold a character of it.
        first, last = np.flatnonzero(prompt.span)[[0, -1]]
        assert prompt.span[first : last + 1].all()
        assert piece not in tokenizer.decode(prompt.ids[first + 1 : last + 1]) or len(piece.encode()) > last - first + 1
        assert piece not in tokenizer.decode(prompt.ids[first:last])


def test_white_space_belongs_to_the_token_that_swallowed_it(tokenizer: Any) -> None:
    prompt = one(tokenizer, {"text": "a \n\n  b"})
    assert role(prompt, "text")[1:].all()


@pytest.mark.parametrize("span", [{"message": 0, "start": 2, "end": 99}, {"message": 1, "start": 0, "end": 1}])
def test_a_span_outside_of_the_text_is_refused(tokenizer: Any, span: dict[str, int]) -> None:
    with pytest.raises(InputError, match="'p7' lies outside"):
        one(tokenizer, {"prompt_id": "p7", "text": "Paris", "spans": [span]})


def test_a_long_prompt_is_refused_by_name_or_cut_and_counted(tokenizer: Any) -> None:
    row = {"prompt_id": "p7", "text": "Paris is in France. " * 20}
    with pytest.raises(InputError, match="'p7' has .* context is 16"):
        one(tokenizer, row, context=16)
    with pytest.raises(InputError, match="'p7' has .* context is 16"):
        check_prompts(tokenizer, [PromptSet.from_rows([row]).table], context=16, tokens="all")
    whole = one(tokenizer, row)
    cut = one(tokenizer, row, context=16, truncate=True)
    assert cut.ids.tolist() == whole.ids[:16].tolist()
    assert cut.dropped == len(whole) - 16


def test_a_prompt_of_exactly_the_context_passes(tokenizer: Any) -> None:
    row = {"text": "Paris is in France."}
    n = len(one(tokenizer, row))
    check_prompts(tokenizer, [PromptSet.from_rows([row]).table], context=n, tokens="all")
    assert len(one(tokenizer, row, context=n)) == n
    with pytest.raises(InputError):
        check_prompts(tokenizer, [PromptSet.from_rows([row]).table], context=n - 1, tokens="all")


def test_missing_responses_are_refused_before_anything_runs(tokenizer: Any) -> None:
    table = PromptSet.from_rows(
        [{"prompt_id": "p6", "text": "a", "response": "b"}, {"prompt_id": "p7", "text": "c", "response": ""}]
    ).table
    with pytest.raises(InputError, match="'p7' has no response"):
        check_prompts(tokenizer, [table], context=None, tokens="response")


def test_messages_without_a_template_are_refused_with_advice() -> None:
    with pytest.raises(InputError, match="no chat template"):
        one(characters(), {"messages": [{"role": "user", "content": "Hi"}]})


def test_a_template_that_refuses_names_the_prompt_and_its_reason() -> None:
    tokenizer = characters()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="refuses prompt 'p7': roles must alternate"):
        one(tokenizer, {"prompt_id": "p7", "messages": [{"role": "user", "content": "Hi"}]})


def test_templates_run_in_a_sandbox() -> None:
    tokenizer = characters()
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="refuses"):
        one(tokenizer, {"messages": [{"role": "user", "content": "Hi"}]})


def test_rows_of_text_and_of_messages_keep_their_order(tokenizer: Any) -> None:
    table = pa.table(
        {
            "prompt_id": ["a", "b", "c"],
            "text": ["one", None, "three"],
            "messages": [None, [{"role": "user", "content": "two"}], None],
        }
    )
    assert [prompt.prompt_id for prompt in encode(tokenizer, table)] == ["a", "b", "c"]


@pytest.mark.parametrize("tokens", ["response", "span"])
def test_a_cut_that_takes_away_what_is_asked_for_is_refused_before_anything_runs(tokenizer: Any, tokens: str) -> None:
    text = "Paris is in France. " * 20
    rows = [
        {"prompt_id": "p6", "text": "a", "response": "b", "spans": [{"start": 0, "end": 1}]},
        {"prompt_id": "p7", "text": text, "response": "b", "spans": [{"start": len(text) - 9, "end": len(text)}]},
    ]
    table = PromptSet.from_rows(rows).table
    check_prompts(tokenizer, [table], context=16, truncate=True, tokens="all")
    check_prompts(tokenizer, [table], context=1000, truncate=True, tokens=tokens)
    with pytest.raises(InputError, match=f"'p7' has no {tokens} \\(or it was cut off\\)"):
        check_prompts(tokenizer, [table], context=16, truncate=True, tokens=tokens)


def test_a_token_beyond_the_embedding_is_named_before_anything_runs(tokenizer: Any) -> None:
    larger = copy.deepcopy(tokenizer)
    vocabulary = len(tokenizer)
    larger.add_tokens(["<tool>"])
    table = PromptSet.from_rows([{"prompt_id": "p6", "text": "a"}, {"prompt_id": "p7", "text": "a <tool> b"}]).table
    with pytest.raises(InputError, match=f"'p7' has the token '<tool>', number {vocabulary}, .* {vocabulary - 1}"):
        check_prompts(larger, [table], context=None, tokens="all", vocabulary=vocabulary)
    # The larger tokenizer does no harm where no prompt has its tokens, and nor does a larger embedding.
    check_prompts(larger, [table.slice(0, 1)], context=None, tokens="all", vocabulary=vocabulary)
    check_prompts(larger, [table], context=None, tokens="all", vocabulary=vocabulary + 1)


@pytest.mark.parametrize("expression", ["1 / 0", "10.0 ** 1000", "range(1000000)"])
def test_a_template_that_cannot_be_computed_is_refused(expression: str) -> None:
    tokenizer = characters()
    tokenizer.chat_template = "{{ " + expression + " }}"
    with pytest.raises(InputError, match="refuses prompt 'p7'"):
        one(tokenizer, {"prompt_id": "p7", "messages": [{"role": "user", "content": "Hi"}]})


def test_a_response_to_an_assistant_s_last_word_is_refused(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(InputError, match="'p7' has a response, and its messages end with an assistant's"):
        one(tokenizer, {"prompt_id": "p7", "messages": chat, "response": "b"})
    assert one(tokenizer, {"messages": chat, "response": ""}).response.any()
