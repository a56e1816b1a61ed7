"""Serving of exports: vLLM's plugin.

Nothing is imported here, and :mod:`deconattn.serving.vllm_plugin` imports vLLM only when vLLM calls it.
"""
