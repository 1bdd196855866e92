"""The closed loop: serve, search, compile, train, gate, publish, reload; and again."""
