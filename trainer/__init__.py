"""The offline half: search traces to rows, rows to weights, weights to the running server."""
