"""Neural machine translation: data, Transformer, training, search."""
