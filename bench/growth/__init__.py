"""How an export grows: with bytes, tensors, ranks and threads, measured and drawn."""
