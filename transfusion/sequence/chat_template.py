"""The texts round the turns of a conversation, from a template in Jinja's language such as tokenizers bring along.

A template is a small program. It is run once, by jinja2 in its sandbox, on conversations whose contents are marks; what
stands between the marks are the texts. Training and drawing then need neither the template nor jinja2.
"""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from transfusion.errors import UsageError, require, shown

_LONGEST = 100_000  # characters of a template, and of what it writes
_FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def template_texts(template: str, tokens: Mapping[str, str], where: str) -> tuple[str, str, str]:
    """What stands round the turns of the system, the user and the assistant; `{}` stands for the content of a turn.

    The text of the system is '' if the template has no turn for it, or has it inside another turn.

    Args:
      template: Jinja's language, with `messages` as Hugging Face's tokenizers give them.
      tokens: the special tokens that it may name, such as `bos_token`. One `bos_token` in front of all is left out,
        because the begin of a document stands there anyway.
      where: names the template's file in errors.

    Raises:
      UsageError: if jinja2 is not installed, the template fails, or its texts depend on more than whose turn it is.
    """
    write = _writer(template, tokens, where)
    begin = tokens.get("bos_token", "")

    def gaps(*turns: str) -> list[str]:
        found = write(turns)
        return [found[0].removeprefix(begin) if begin else found[0], *found[1:]]

    (first, after_user), (_, between, after_assistant) = gaps("user"), gaps("user", "assistant")
    texts = {"user": (first, after_user), "assistant": (between.removeprefix(after_user), after_assistant)}
    _check(gaps, texts, ("user", "assistant") * 3, where)
    try:
        before, between, *_ = gaps("system", "user", "assistant")
        texts["system"] = (before, between.removesuffix(first))
        _check(gaps, texts, ("system", *("user", "assistant") * 2), where)
    except UsageError:
        texts["system"] = None
    system, user, assistant = ("{}".join(texts[turn] or ("", "")) for turn in ("system", "user", "assistant"))
    return system if texts["system"] else "", user, assistant


def _check(
    gaps: Callable[..., list[str]], texts: Mapping[str, tuple[str, str]], turns: Sequence[str], where: str
) -> None:
    """Raises UsageError unless a conversation is its turns, one after the other, each between its two texts."""
    befores, afters = [texts[turn][0] for turn in turns], [texts[turn][1] for turn in turns]
    wanted = [after + before for after, before in zip(["", *afters], [*befores, ""], strict=True)]
    for number, (ours, found) in enumerate(zip(wanted, gaps(*turns), strict=True)):
        if ours != found:
            raise UsageError(
                f"{where}: the texts of the chat template depend on more than whose turn it is: turn {number} of "
                f"{', '.join(turns)} begins with {shown(found)!r}, not {shown(ours)!r}: set tokenizer.chat.kind='text' "
                "and the texts of the turns"
            )


def _writer(template: str, tokens: Mapping[str, str], where: str) -> Callable[[Sequence[str]], list[str]]:
    """A function from the turns of a conversation to what a template writes before, between and behind them."""
    jinja2, sandbox = require("jinja2", "tokenizers"), require("jinja2.sandbox", "tokenizers")

    def fault(error: object) -> UsageError:
        return UsageError(
            f"{where}: the chat template fails ({shown(str(error))}): set tokenizer.chat.kind='text' and the texts of "
            "the turns"
        )

    try:
        if len(template) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST} characters")
        compiled = _environment(jinja2, sandbox).from_string(template)
    except (jinja2.TemplateError, *_FAULTS) as error:
        raise fault(error) from error

    def write(turns: Sequence[str]) -> list[str]:
        marks = [f"mark{number}of{turn}" for number, turn in enumerate(turns)]
        messages = [{"role": turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        try:
            text = compiled.render(dict(tokens), messages=messages, add_generation_prompt=False)
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise fault(error) from error
        found, rest = [], text[:_LONGEST]
        for mark in marks:
            if rest.count(mark) != 1:
                raise fault(f"it writes the content of a turn {rest.count(mark)} times")
            before, _, rest = rest.partition(mark)
            found.append(before)
        if "{}" in text:
            raise fault("it writes {}")
        return [*found, rest]

    return write


def _environment(jinja2: ModuleType, sandbox: ModuleType) -> object:
    """Jinja's sandbox with the settings and functions that templates of tokenizers expect."""

    class Bounded(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))  # a short template could fill the memory

        def call_binop(self, context, operator, left, right):
            if operator == "**" or not all(isinstance(side, int) and abs(side) < 2**31 for side in (left, right)):
                raise sandbox.SecurityError(f"{operator} is not run")
            return super().call_binop(context, operator, left, right)

    def stop(message: str) -> None:
        raise jinja2.TemplateError(message)

    made = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.globals["raise_exception"] = stop
    made.globals["strftime_now"] = lambda form: stop("it writes the date")
    return made
