"""A model on this machine as judge."""

from __future__ import annotations

import threading
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.judges import MAX_TOKENS, JudgeFailed, Messages, Reply


class LocalJudge:
    """A model on this machine as judge: greedy, in its tokenizer's chat template, to the first of its end tokens.

    Of the settings for generation that came with the model only those end tokens are used.
    """

    endpoint = "local"

    def __init__(self, model: Any, tokenizer: Any, *, version: str, max_tokens: int = MAX_TOKENS) -> None:
        """Take a loaded model.

        Args:
            model: A transformers causal language model.
            tokenizer: The model's, with a chat template.
            version: What tells its weights from others.
            max_tokens: Of one judgment.

        Raises:
            HarnessError: there is no chat template.
        """
        from harness.evaluation.generation import end_tokens

        if not tokenizer.chat_template:
            raise HarnessError("the local judge's tokenizer has no chat template, in which it would be asked")
        self._ends = end_tokens(model, tokenizer)
        self._model = model
        self._tokenizer = tokenizer
        self.known_version = version
        self._max_tokens = max_tokens
        self._lock = threading.Lock()

    def ask(self, messages: Messages) -> Reply:
        """Return what the model says.

        Raises:
            JudgeFailed: the prompt leaves no room for a judgment, or no memory; or the chat template refuses it.
        """
        import torch
        from transformers import GenerationConfig

        from harness.evaluation.generation import protocol_alone, until_end
        from harness.tensors.out_of_memory import is_out_of_memory
        from harness.tensors.rotary import reset_rotation

        text = self._prompt(messages)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        room = min(self._max_tokens, self._model.config.max_position_embeddings - len(ids))
        if room < 1:
            raise JudgeFailed(f"the local judge takes no prompt of {len(ids)} tokens")
        tokens = torch.tensor([ids], device=next(self._model.parameters()).device)
        generation = GenerationConfig(
            max_new_tokens=room, do_sample=False, eos_token_id=sorted(self._ends), pad_token_id=min(self._ends)
        )
        with self._lock, torch.no_grad(), protocol_alone(self._model):
            reset_rotation(self._model)
            try:
                written = self._model.generate(
                    input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=generation
                )
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                written = None
        if written is None:  # not inside except: the error holds the tensors of the failed pass
            raise JudgeFailed(f"the local judge ran out of memory over a prompt of {len(ids)} tokens")
        said, ended = until_end(written[0, len(ids) :].tolist(), self._ends)
        return Reply(str(self._tokenizer.decode(said, skip_special_tokens=True)), self.known_version, cut=not ended)

    def _prompt(self, messages: Messages) -> str:
        """Return the prompt in the tokenizer's chat template.

        Raises:
            JudgeFailed: the template refuses such a chat, as some refuse a system prompt.
        """
        from jinja2 import TemplateError

        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise JudgeFailed(
                f"the local judge's chat template refuses the question: {error}", hopeless=True
            ) from error
