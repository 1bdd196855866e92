"""vLLM servers that go over to announced weights by themselves (`server.pod`), as a gateway sees
them: what they serve, and that they go on serving it while its searches need it."""
