"""What replicas share: in this process with one of them, in Redis or Valkey with several."""
