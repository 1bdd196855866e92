"""HTTP: OpenAI's chat completions, the native `/v1/reason`, models, traces, health."""
