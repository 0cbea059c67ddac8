"""Language models as people use them: chats, tools, answers, embeddings, model files.

``messages`` is what goes into an :class:`~qbtc.llm.engine.Engine` and what comes out of it. Tokens
and numerics are ``qbtc.core``'s; HTTP is the gateway's.
"""
