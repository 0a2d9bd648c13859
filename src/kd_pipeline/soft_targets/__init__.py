"""The teacher's logits as a parquet store that knows what it was made from."""
