"""vLLM's own server, following announced weights: `python -m server.pod --model MODEL ...`"""
