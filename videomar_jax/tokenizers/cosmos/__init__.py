"""The Cosmos continuous video tokenizer."""
