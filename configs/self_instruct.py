"""Self-Instruct (Wang et al. 2022, arXiv 2212.10560): a pool of requests that grows.

A model is shown eight requests, six seeds and two of its own, and writes another one.
What repeats an earlier one (ROUGE-L 0.7), is too short or long, or asks for more than
text is dropped. It shows that a few written seeds are enough for a pool of prompts,
with which Self-Rewarding and its kin train.

    jaxloop prompts configs/self_instruct.py model.path=DIR \\
        data.train=seed_tasks.jsonl out=runs/pool
    jaxloop run configs/self_rewarding.py model.path=DIR \\
        data.train=runs/pool/prompts.jsonl data.test=held_out.jsonl

Seeds are rows as those of the published 175 tasks: {instruction, instances: [{input,
...}]}; the input, where there is one, belongs to the request. For rows {prompt} add
`data.template=""`. The model should follow instructions; one that only continues text
does it worse, in the form that it is shown.

Expected: `prompts.jsonl` with {prompt} and where each comes from; how many texts were
dropped, and why, is printed. No model that follows instructions has been run here: a
small random one went through it, and nothing that it wrote was a request.

Of the settings, the paper's are: eight shots, six of them seeds, the filters' kinds,
0.7. Recalled, not checked against the paper: temperature 0.6 and top-p 0.9, which are
Self-Rewarding's (arXiv 2401.10020), and the words that are dropped. Ours: the words of
the request, one request a text, lengths, at most four texts for each prompt wanted. The
paper asks for inputs apart and writes outputs too; here a prompt is one text.
"""

from jaxloop.config import unknown_variant
from jaxloop.experiment import Config, Model
from jaxloop.loop.recipe import PromptStage
from jaxloop.prompts.dataset import JsonlData
from jaxloop.prompts.self_instruct import SelfInstruct

SEEDS = JsonlData(
    template="{instruction}\n{instances.0.input}",
    max_prompt_tokens=1024,
    on_long="filter",
)


def get_config(variant: str | None = None) -> Config:
    if variant is not None:
        raise unknown_variant(variant, [])
    return Config(
        name="self_instruct",
        model=Model(),
        data=SEEDS,
        prompts=PromptStage(SelfInstruct(count=5000)),
    )
