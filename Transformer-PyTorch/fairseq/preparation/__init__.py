"""Making the parallel texts of the experiments: fetched, tokenized, cleaned, split, cut into subwords, numbered."""
