"""Images: where they come from, how they are decoded, and how they become batches."""
