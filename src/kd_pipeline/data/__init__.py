"""Images: where they come from, which roles they take, and how they are seen."""
