"""The teacher's logits as a parquet store, with all that they were made from."""
