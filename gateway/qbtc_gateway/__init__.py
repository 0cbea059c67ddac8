"""OpenAI-compatible HTTP server on the QBTC inference core.

A client's request becomes a `qbtc.llm` request for an engine, and the engine's events become the
client's JSON or server-sent events. Numerics, prompts and tool calls live in `qbtc`; keys, limits
and the wire live here.
"""
