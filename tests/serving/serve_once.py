"""One vLLM engine, one batch: python -m tests.serving.serve_once FOLDER REQUEST.json ANSWER.json.

The request has `options` of vLLM's LLM, `prompts` of token ids, and how many tokens to generate. The answer has of each
prompt the generated ids and, [tokens, vocab_size], the logits that each was taken from.
"""

import json
import sys
from pathlib import Path


def main(folder: str, request: str, answer: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    asked = json.loads(Path(request).read_text())
    vocabulary = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    engine = LLM(
        folder,
        **{"dtype": "float32", "enforce_eager": True} | asked["options"],
        skip_tokenizer_init=True,
        max_logprobs=vocabulary,
        logprobs_mode="raw_logits",
    )
    outputs = engine.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in asked["prompts"]],
        SamplingParams(
            temperature=0, max_tokens=asked["tokens"], logprobs=vocabulary, detokenize=False, ignore_eos=True
        ),
    )
    answers = [
        {
            "ids": list(output.outputs[0].token_ids),
            "logits": [[step[i].logprob for i in range(vocabulary)] for step in output.outputs[0].logprobs],
        }
        for output in outputs
    ]
    Path(answer).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
