"""Run by vLLM's own environment: answers requests with one engine and writes what it saw. ``engine.py JOB.json OUT.json``

A job: folder, options of vLLM.LLM, requests of [placement ("": the default), prompt, new tokens], bad arguments, which to abort after
a few steps.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from supernet.ops import kernels
from supernet.serving.pages import PLACEMENTS

job = json.loads(Path(sys.argv[1]).read_text())
llm = LLM(job["folder"], enforce_eager=True, skip_tokenizer_init=True, seed=0, **job["options"])
core = llm.llm_engine.engine_core.engine_core
scheduler = core.scheduler
managers = scheduler.kv_cache_manager.coordinator.single_type_managers
free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks
seen = {"pages": [], "preempted": 0, "largest_batch": 0, "mixed_steps": 0, "free_before": free()}

schedule, preempt = scheduler.schedule, scheduler._preempt_request


def watched(*args, **kwargs):
    step = schedule(*args, **kwargs)
    tokens = step.num_scheduled_tokens
    seen["largest_batch"] = max(seen["largest_batch"], len(tokens))
    seen["mixed_steps"] += min(tokens.values(), default=0) == 1 < max(tokens.values(), default=0)
    for request in scheduler.running:
        held = [sum(not block.is_null for block in manager.req_to_blocks.get(request.request_id, ())) for manager in managers]
        placement = PLACEMENTS[request.request_id]
        seen["pages"].append([placement, request.num_computed_tokens, tokens.get(request.request_id, 0), held])
    return step


def preempted(*args, **kwargs):
    seen["preempted"] += 1
    return preempt(*args, **kwargs)


scheduler.schedule, scheduler._preempt_request = watched, preempted


def params(placement, new):
    asked = {"placement": placement} if placement else None
    return SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, extra_args=asked)


seen["refused"] = []
for placement in job["bad"]:
    try:
        llm.generate([{"prompt_token_ids": [1]}], params(placement, 1), use_tqdm=False)
    except VLLMValidationError as error:
        seen["refused"].append(str(error))

answers = {}
for i, (placement, prompt, new) in enumerate(job["requests"]):
    llm.llm_engine.add_request(str(i), {"prompt_token_ids": prompt}, params(placement, new))
for step in range(10_000):
    if step == 4:
        llm.llm_engine.abort_request([str(i) for i in job["abort"]])
    for output in llm.llm_engine.step():
        if output.finished:
            answers[output.request_id] = list(output.outputs[0].token_ids)
    if not llm.llm_engine.has_unfinished_requests():
        break
seen |= {
    "answers": answers,
    "free_after": free(),
    "page_tokens": managers[0].block_size,
    "page_bytes": managers[0].kv_cache_spec.page_size_bytes,
    "kernels": kernels._way,
    "prefix_caching": llm.llm_engine.vllm_config.cache_config.enable_prefix_caching,
}
Path(sys.argv[2]).write_text(json.dumps(seen))
