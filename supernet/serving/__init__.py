"""A vLLM plugin: stock vLLM serves a supernet, with a placement per request in one running batch. Nothing of ours imports it."""
